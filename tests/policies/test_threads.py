"""Threads for policies: neither they nor prompts wait for the other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from sparsity_policies.threads import BUILDS, DRAFTS, EXPLANATIONS, REPLAYS


async def test_policies_and_prompts_have_threads_of_their_own() -> None:
    loop, free = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(2))
    pools = (BUILDS, DRAFTS, REPLAYS, EXPLANATIONS)
    # As many as there can be at a time, and some that wait.
    prompts = [asyncio.create_task(asyncio.to_thread(free.wait)) for _ in range(4)]
    try:
        async with asyncio.timeout(30.0):
            assert [await pool.run(int, "7") for pool in pools] == [7] * 4
        free.set()
        await asyncio.gather(*prompts)
        free.clear()
        for busy in pools:
            held = [asyncio.create_task(busy.run(free.wait)) for _ in range(8)]
            async with asyncio.timeout(30.0):
                assert await asyncio.to_thread(int, "7") == 7
                assert [await pool.run(int, "7") for pool in pools if pool is not busy] == [7] * 3
            free.set()
            await asyncio.gather(*held)
            free.clear()
    finally:
        free.set()
