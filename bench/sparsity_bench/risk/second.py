"""The second opinion as it is measured: each part is read once, and what that takes is kept apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.risk.opinion import Opinions, closer
from sparsity_policies.risk.weighing import wanted
from sparsity_router.prompts.opinion.model_file import fetched
from sparsity_router.prompts.opinion.reader import Reader
from sparsity_serving.benchmark import Row

_TIMED: Final = 30


class Second:
    """A reader with a memory, because a benchmark's prompts are made of the same texts."""

    def __init__(self) -> None:
        self._reader = Reader(fetched())
        self._known: dict[str, Sequence[float]] = {}

    def ask(self, texts: Sequence[str]) -> Opinions:
        """Opinions on texts."""
        found = self._reader.read([text for text in texts if text not in self._known])
        assert found is not None, "there was no limit of time"
        self._known |= found
        return {text: self._known[text] for text in texts}

    def time(self, prompts: Sequence[str], snapshot: Snapshot) -> list[Row]:
        """What it costs requests that declare `rag`: how many are asked about, and processor time of those."""
        asked = wanted(snapshot.policy("rag"), snapshot.risk.policies)
        parts = closer(asked, snapshot.risk.taught)
        read, times = [snapshot.risk.model.scores(text, asked, parts).likely for text in prompts], []
        told = [likely for likely in read if likely]
        for likely in told[:: max(len(told) // _TIMED, 1)]:
            started = time.process_time()
            self._reader.read([part.text for part in likely])
            times.append(1000 * (time.process_time() - started))
        share, most = 100 * len(told) / len(read), max(map(len, read))
        shape = f"median of {len(times)}, {most} parts at most"
        return [
            Row("harmless prompts that a second opinion is asked about", f"{len(read)} prompts", share, "%"),
            Row("processor time of a second opinion", shape, sorted(times)[len(times) // 2], "ms"),
        ]
