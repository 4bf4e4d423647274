"""Ends jobs that were begun as tasks, whatever they are in the middle of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_CANCEL_SECONDS: Final = 0.5


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> list[Any]:
    """Cancels tasks until all have ended, and returns what each ended with.

    Once is not enough: ``asyncio.wait_for`` of Python 3.11, by which the Redis client sends, swallows a cancel that
    comes just as what it waits for is done (https://github.com/python/cpython/issues/86296).
    """
    tasks = list(tasks)
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)
    return await asyncio.gather(*tasks, return_exceptions=True)
