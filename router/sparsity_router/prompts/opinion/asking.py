"""Asks for a second opinion within a time budget, and says why when there is none."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final

from sparsity_policies.risk.opinion import Opinions

from sparsity_router.prompts.opinion import process
from sparsity_router.prompts.opinion.model_file import present

log = logging.getLogger("sparsity.router.opinion")
# Prompts that may wait for the process; more could not be answered in time.
_WAITING: Final = 8
_RETRY_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 1.0
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
            async with asyncio.timeout(self._seconds):
                found = await self._ask(texts, time.time() + self._seconds)
        except TimeoutError:
            found = None
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # Not the caller went away, but the process that was to answer.
            raise NoOpinionError("the second opinion was started anew meanwhile") from error
        except Exception as error:  # whatever the process raised, there is no answer
            raise NoOpinionError(f"the second opinion failed: {type(error).__name__}: {error}") from error
        finally:
            self._waiting -= 1
        if found is None:
            raise NoOpinionError(f"the second opinion ran out of time ({self._seconds:g} s)")
        return found

    async def run(self) -> None:
        """Keeps the process alive, for as long as it runs."""
        try:
            while True:
                try:
                    await self._begin()
                except (BrokenProcessPool, OSError):
                    log.exception("the second opinion failed; requests with likely risk go dense until it is back")
                    self.close()
                    await asyncio.sleep(_RETRY_SECONDS)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self.close()

    async def _begin(self) -> None:
        """Starts the process, or finds out whether it is still there."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), process.start, (self._path,))
        if not self._waiting:
            await self._ask([] if self._ready else [_FIRST], time.time() + _RETRY_SECONDS)
        self._ready = True

    async def _ask(self, texts: Sequence[str], until: float) -> Opinions | None:
        assert self._pool is not None
        return await asyncio.get_running_loop().run_in_executor(self._pool, process.read, texts, until)

    def close(self) -> None:
        """Ends the process."""
        pool, self._pool, self._ready = self._pool, None, False
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
