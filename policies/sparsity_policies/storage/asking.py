"""Questions to the policy store that have little time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Asking:
    """Asks, and goes on without an answer that is late.

    A late question is not cancelled: its connection, whose making took the time, would be lost with it, and so would
    the next one's, and the next.
    """

    def __init__(self) -> None:
        self._asked: set[asyncio.Task[Any]] = set()

    async def answer(self, question: Coroutine[Any, Any, Answer], seconds: float) -> Answer:
        """The answer.

        Raises:
            TimeoutError: when it has not come within ``seconds``.
        """
        task = asyncio.create_task(question)
        self._asked.add(task)
        task.add_done_callback(self._forget)
        async with asyncio.timeout(seconds):
            return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            # Who asked may have gone; an error that nobody takes would be told at the end of the process.
            task.exception()

    async def close(self) -> None:
        """Cancels what is still asked."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
