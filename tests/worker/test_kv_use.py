"""However many routers watch a worker's load, its engine answers one question, and nobody gets an old answer."""

from __future__ import annotations

import asyncio
import time

import pytest
from sparsity_worker.calls.kv_use import KvUse
from sparsity_worker.calls.load import SPACING_SECONDS, Load

_WATCHERS, _INTERVAL, _SECONDS = 30, 0.2, 1.5


class _Engine:
    """Counts its questions; holds as many tokens as there are requests."""

    def __init__(self, load: Load) -> None:
        self.questions = 0
        self._load = load

    async def used_tokens(self) -> int:
        self.questions += 1
        held = len(self._load.requests)
        await asyncio.sleep(0.005)
        return held


async def watched(watchers: int, *, busy: bool) -> tuple[float, list[list[int]]]:
    """Questions that the engine was asked a second, and what each watcher was told."""
    load = Load(100)
    engine = _Engine(load)
    use = KvUse(engine.used_tokens, load)
    told: list[list[int]] = [[] for _ in range(watchers)]

    async def watch(place: int) -> None:
        # Routers come by and by.
        await asyncio.sleep(place * _INTERVAL / watchers)
        async for _ in load.changes(_INTERVAL):
            told[place].append(await use.read(_INTERVAL))

    tasks = [asyncio.create_task(watch(place)) for place in range(watchers)]
    started = time.monotonic()
    ends = started + _SECONDS
    while time.monotonic() < ends:
        with load.admit("r", 1):
            await asyncio.sleep(0.003)
            if not busy:
                await asyncio.sleep(ends - time.monotonic())
    with load.admit("last", 1), load.admit("of all", 1):
        while not all(answers and answers[-1] == 2 for answers in told):
            assert time.monotonic() < ends + 20, "not everybody is told of the last change"
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return engine.questions / (time.monotonic() - started), told


@pytest.mark.parametrize("busy", [False, True])
async def test_many_watchers_ask_as_often_as_one(busy: bool) -> None:
    (alone, _), (questions, told) = await watched(1, busy=busy), await watched(_WATCHERS, busy=busy)
    at_most = 1 / (SPACING_SECONDS if busy else _INTERVAL)
    assert alone <= questions * 2
    assert questions <= 1.1 * at_most + 6
    assert all(len(answers) > 2 for answers in told)


async def test_who_leaves_takes_the_answer_from_nobody() -> None:
    load = Load(1)
    use = KvUse(_Engine(load).used_tokens, load)
    leaving, staying = asyncio.create_task(use.read(1.0)), asyncio.create_task(use.read(1.0))
    await asyncio.sleep(0.001)
    leaving.cancel()
    assert await staying == 0
