"""How long one event loop is kept by what runs on it, on a machine that may be busy with something else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def loop_is_free(at_most: float = 0.5) -> AsyncIterator[None]:
    """Meanwhile the loop is never kept for ``at_most`` seconds of its own thread's processor time at a stretch."""
    longest, stop = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        while not stop.is_set():
            started = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - started)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    try:
        yield
    finally:
        stop.set()
        await ticking
    print(f"the loop was kept for {longest * 1000:.0f} ms at most", end=" ")
    assert longest < at_most, f"the loop was kept for {longest:.1f} s"
