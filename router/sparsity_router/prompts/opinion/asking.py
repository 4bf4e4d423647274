"""Asks for a second opinion within a time budget, and says why when there is none."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from sparsity_policies.risk.opinion import Opinions
from sparsity_serving.background.budget import kept_alive, within

from sparsity_router.prompts.opinion import process
from sparsity_router.prompts.opinion.model_file import present

log = logging.getLogger("sparsity.router.opinion")
# Prompts that may wait for the process; more could not be answered in time.
_WAITING: Final = 8
_BEGUN_SECONDS: Final = 5.0
# A text that is read when the process begins, so that the first prompt does not wait for what is loaded late.
_FIRST: Final = "The kettle is on the stove."


class NoOpinionError(Exception):
    """There is no second opinion; the request must go dense."""


class SecondOpinion:
    """An encoder in a process of its own.

    Args:
        seconds: the time budget of one prompt.

    Raises:
        ConfigurationError: when the encoder's file is missing.
    """

    def __init__(self, seconds: float) -> None:
        self._path = present()
        self._seconds = seconds
        self._pool: ProcessPoolExecutor | None = None
        self._ready = False
        self._waiting = 0

    async def read(self, texts: Sequence[str]) -> Opinions:
        """What the net says of each text.

        Raises:
            NoOpinionError: saying why there is none.
        """
        if not self._ready:
            raise NoOpinionError("the second opinion is not ready yet")
        if self._waiting >= _WAITING:
            raise NoOpinionError(f"{self._waiting} prompts wait for a second opinion")
        self._waiting += 1
        try:
            asked = self._ask(texts, time.time() + self._seconds)
            return await within(self._seconds, asked, "the second opinion", NoOpinionError)
        finally:
            self._waiting -= 1

    async def run(self) -> None:
        """Keeps the process alive, for as long as it runs."""
        lost = "the second opinion failed; requests with likely risk go dense until it is back"
        await kept_alive(self._begin, self.close, log, lost)

    async def _begin(self) -> None:
        """Starts the process, or finds out whether it is still there."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), process.start, (self._path,))
        if not self._waiting:
            await self._ask([] if self._ready else [_FIRST], time.time() + _BEGUN_SECONDS)
        self._ready = True

    async def _ask(self, texts: Sequence[str], until: float) -> Opinions | None:
        assert self._pool is not None
        return await asyncio.get_running_loop().run_in_executor(self._pool, process.read, texts, until)

    def close(self) -> None:
        """Ends the process."""
        pool, self._pool, self._ready = self._pool, None, False
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
