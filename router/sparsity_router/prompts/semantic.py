"""Semantic detection of domains: asks the embedding process, within a time budget, and says why when it cannot tell."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.background.budget import kept_alive, within

from sparsity_router.prompts import embedding_process
from sparsity_router.prompts.domains import Score
from sparsity_router.prompts.embedding_model import model_files

log = logging.getLogger("sparsity.router.semantic")
_LEARNT_AT_ONCE = 16
# Prompts that may wait for the process; more could not be answered in time.
_WAITING = 8
# Several times what the model reads in a second: a longer text is not even handed over.
_MOST_CHARACTERS = 1_000_000


class DetectionError(Exception):
    """The classifier gave no answer; the request must go dense."""


class Detector:
    """Scores of prompts against the exemplars of all policies.

    Args:
        folder: with model.onnx and tokenizer.json; None takes the default one, see :mod:`.embedding_model`.
        seconds: the time budget of one prompt.

    Raises:
        ConfigurationError: when there is no such model, or what runs it is not installed.
    """

    def __init__(self, folder: Path | None, seconds: float) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigurationError("--detect: needs the extra `semantic` of sparsity-router, or `--detect off`")
        self._files = model_files(folder)
        self._seconds = seconds
        self._pool: ProcessPoolExecutor | None = None
        self._waiting = 0
        self._ready = ""

    async def detect(self, text: str, snapshot: Snapshot) -> Mapping[str, Score]:
        """Every domain's score over the whole text; empty where no policy has exemplars.

        Raises:
            DetectionError: saying why there is none.
        """
        key = snapshot.exemplars_hash
        if not key:
            return {}
        if self._pool is None or key != self._ready:
            raise DetectionError("the semantic classifier is not ready for these policies yet")
        if len(text) > self._seconds * _MOST_CHARACTERS:
            problem = f"cannot read {len(text)} characters within its {self._seconds:g} s"
            raise DetectionError(f"the semantic classifier {problem}")
        if self._waiting >= _WAITING:
            raise DetectionError(f"{self._waiting} prompts wait for the semantic classifier")
        self._waiting += 1
        try:
            return await within(self._seconds, self._scores(key, text), "semantic detection", DetectionError)
        finally:
            self._waiting -= 1

    async def _scores(self, key: str, text: str) -> Mapping[str, Score] | None:
        try:
            scores: Mapping[str, Score] | None = await self._ask("scores", key, text, time.time() + self._seconds)
        except LookupError:
            # It was taught others meanwhile.
            return None
        return scores

    async def run(self, follower: Any) -> None:
        """Keeps the process alive and taught, for as long as it runs.

        Args:
            follower: whose ``snapshot`` is followed.
        """
        lost = "the semantic classifier failed; undeclared requests go dense until it is back"
        await kept_alive(lambda: self._teach(follower.snapshot), self.close, log, lost)

    async def _teach(self, snapshot: Snapshot) -> None:
        key = snapshot.exemplars_hash
        if not key or key == self._ready:
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawn, embedding_process.start, self._files)
        pairs = [(domain, text) for domain, texts in _exemplars(snapshot) for text in texts]
        # In small parts, so that prompts are answered in between.
        for start in range(0, len(pairs), _LEARNT_AT_ONCE):
            await self._ask("learn", [text for _, text in pairs[start : start + _LEARNT_AT_ONCE]])
        await self._ask("use", key, pairs)
        self._ready = key

    async def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._pool is not None
        return await asyncio.get_running_loop().run_in_executor(self._pool, embedding_process.call, method, *arguments)

    def close(self) -> None:
        """Ends the process."""
        pool, self._pool, self._ready = self._pool, None, ""
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _exemplars(snapshot: Snapshot) -> list[tuple[str, tuple[str, ...]]]:
    found = ((domain, item.policy.detection.exemplars) for domain, item in sorted(snapshot.policies.items()))
    return [(domain, texts) for domain, texts in found if texts]
