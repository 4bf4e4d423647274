"""What all answers to one request share: the workers that died with any of them, and the one that speaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sparsity_router.fleet.needs import Need


class Answers:
    """One request's.

    Args:
        lost: workers that died with it before it came here.

    Attributes:
        deaths: workers that died with it in flight, or dense ones that hung on it.
        speaker: target of the worker that last began an answer, and holds the prompt; empty until one does.
        needs: what each needs that not every worker has; None until it was read.
        readers: workers that were asked for any of them and did not refuse: they may have read the prompt.
    """

    def __init__(self, lost: int = 0) -> None:
        self.deaths = lost
        self.speaker = ""
        self.needs: frozenset[Need] | None = None
        self.readers = 0
        self._died: dict[str, float] = {}
        # Those that a worker was asked for and has not begun.
        self._silent: set[object] = set()
        self._changed = asyncio.Event()

    @property
    def must_wait(self) -> bool:
        """Whether a worker died with one answer, and another may be dying of one."""
        return bool(self.deaths and self._silent)

    async def turn(self) -> None:
        """Waits while it must."""
        while self.must_wait:
            self._changed.clear()
            await self._changed.wait()

    @contextmanager
    def asked(self, answer: object) -> Iterator[None]:
        """While a worker is asked for an answer, which is whatever stands for it."""
        self._silent.add(answer)
        try:
            yield
        finally:
            self._end_silence(answer)

    def speaks(self, answer: object, target: str) -> None:
        """A worker has begun an answer."""
        self.speaker = target
        self._end_silence(answer)

    def died(self, target: str, began: float) -> None:
        """Counts a worker's death, once, however many answers it ended.

        Args:
            target: of the worker.
            began: when it was asked for the answer, by the monotonic clock.
        """
        if began >= self._died.get(target, began):
            self.deaths += 1
            self._died[target] = time.monotonic()

    def _end_silence(self, answer: object) -> None:
        self._silent.discard(answer)
        self._changed.set()
