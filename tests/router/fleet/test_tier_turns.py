"""Several tiers on one engine: dense first, sparse ones by turns, and room for what policy holds dense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision, Reason, Tier
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.tier_turns import TierTurns
from sparsity_router.fleet.workers import State, Worker
from sparsity_router.relaying.turns import place_in_turn
from sparsity_router.relaying.worker_request import WorkerRequest
from support.routers.whole_path import MIXED, POOLS, SHARED, Context, HeldReview, Layout, Served, fleet_of

DENSE, MODERATE, AGGRESSIVE = Tier
ONE: Layout = {"shared": Served(frozenset(Tier))}


class Requests:
    """Requests at a fleet, each of which holds its worker until it is let go.

    Attributes:
        begun: the tiers that requests were given, in the order in which they got a worker.
        running: by number of arrival, what each holds.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.begun: list[tuple[Tier, int]] = []
        self.running: dict[int, tuple[asyncio.Event, Worker, Tier, Tier]] = {}
        self.waiting: dict[int, Tier] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, tier: Tier, tokens: int = 100, fallback: tuple[Tier, ...] = ()) -> None:
        """A request that policy gives ``tier``."""
        number = len(self._tasks)
        self.waiting[number] = tier
        self._tasks.append(asyncio.create_task(self._run(number, tier, tokens, fallback)))

    async def _run(self, number: int, tier: Tier, tokens: int, fallback: tuple[Tier, ...]) -> None:
        decision = Decision(tier, Reason.LENGTH_BAND, "", "chat", 1, tier, "", fallback)
        sampling = inference_pb2.SamplingParams(max_new_tokens=tokens)
        message = worker_pb2.WorkerServiceGenerateRequest(request_id=f"{number}", sampling=sampling)
        request = WorkerRequest(message, "", cast(Any, SimpleNamespace(review=HeldReview(lambda: decision))))
        worker, served, _ = await place_in_turn(self.fleet, request, cast(Any, Context()))
        with worker.dispatched(f"{number}", served.tier, tokens):
            del self.waiting[number]
            self.begun.append((tier, tokens))
            self.running[number] = asyncio.Event(), worker, served.tier, tier
            await self.running[number][0].wait()
            del self.running[number]

    def let_go(self, place: int = 0) -> None:
        """Lets the request end that has run longest, or one of those after it."""
        if numbers := sorted(self.running):
            self.running[numbers[place % len(numbers)]][0].set()

    async def drain(self) -> None:
        """Lets one after the other end, until nobody runs."""
        while self.running:
            self.let_go()
            await settled()

    async def stop(self) -> None:
        """Ends what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.fleet.close()


async def settled() -> None:
    """Until everybody who can go on has."""
    for _ in range(30):
        await asyncio.sleep(0)


@asynccontextmanager
async def requests(layout: Layout, reserve: float) -> AsyncIterator[Requests]:
    made = Requests(fleet_of(layout, Admission(queue_seconds=60.0, queue_limit=10_000, dense_reserve=reserve)))
    try:
        yield made
    finally:
        await made.stop()


def test_dense_first_then_who_has_had_the_least() -> None:
    turns = TierTurns()
    assert turns.order() == [DENSE, MODERATE, AGGRESSIVE]
    turns.had(MODERATE, 100)
    assert turns.order() == [DENSE, AGGRESSIVE, MODERATE]
    turns.had(AGGRESSIVE, 300)
    assert turns.order() == [DENSE, MODERATE, AGGRESSIVE]
    for _ in range(3):
        # What dense requests take is held against nobody.
        turns.had(DENSE, 10**9)
        turns.had(MODERATE, 100)
    assert turns.order() == [DENSE, AGGRESSIVE, MODERATE]


async def test_a_flood_of_one_sparse_tier_starves_no_other() -> None:
    async with requests(ONE, 0.0) as made:
        for _ in range(60):
            made.ask(MODERATE)
        await settled()
        for _ in range(10):
            made.let_go()
            await settled()
        before = len(made.begun)
        assert before == 12
        for _ in range(8):
            made.ask(AGGRESSIVE)
        await made.drain()
        order = [tier for tier, _ in made.begun[before:]]
        # Turn and turn about from when they came, whoever waits.
        assert order[:16].count(AGGRESSIVE) == 8
        assert len(order) == 56


async def test_turns_are_by_tokens() -> None:
    async with requests(ONE, 0.0) as made:
        for _ in range(40):
            made.ask(MODERATE, 100)
            made.ask(AGGRESSIVE, 400)
        await settled()
        while len(made.begun) < 30:
            made.let_go()
            await settled()
        taken = {tier: sum(tokens for at, tokens in made.begun if at is tier) for tier in (MODERATE, AGGRESSIVE)}
        assert abs(taken[MODERATE] - taken[AGGRESSIVE]) <= 800, taken


async def test_who_waited_for_nothing_has_saved_up_nothing() -> None:
    async with requests(ONE, 0.0) as made:
        for _ in range(30):
            made.ask(MODERATE)
        await settled()
        for _ in range(20):
            made.let_go()
            await settled()
        before = len(made.begun)
        for _ in range(20):
            made.ask(AGGRESSIVE)
        await made.drain()
        # Not all twenty before those that waited already.
        assert 4 <= [tier for tier, _ in made.begun[before:][:10]].count(MODERATE) <= 6


async def test_what_policy_holds_dense_comes_first() -> None:
    async with requests(ONE, 0.0) as made:
        for tier in (MODERATE, AGGRESSIVE):
            for _ in range(5):
                made.ask(tier)
        await settled()
        for _ in range(3):
            made.ask(DENSE)
        await settled()
        before = len(made.begun)
        await made.drain()
        assert [tier for tier, _ in made.begun[before:]][:3] == [DENSE] * 3


EVENTS = st.lists(
    st.tuples(st.sampled_from(("ask", "ask", "end")), st.sampled_from(Tier), st.booleans(), st.integers(0, 9)),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.sampled_from((ONE, SHARED, POOLS, MIXED)), st.sampled_from((0.0, 0.5)))
def test_no_dense_request_waits_while_any_worker_that_serves_dense_has_room(
    events: list[tuple[str, Tier, bool, int]], layout: Layout, reserve: float
) -> None:
    async def play() -> None:
        async with requests(layout, reserve) as made:
            for event, tier, spills, place in events:
                if event == "ask":
                    made.ask(tier, fallback=tuple(Tier(at) for at in range(tier - 1, 0, -1)) if spills else ())
                else:
                    made.let_go(place)
                await settled()
                check(made, layout, reserve)

    asyncio.run(play())


def check(made: Requests, layout: Layout, reserve: float) -> None:
    roomy = {w.target for w in made.fleet.workers if w.state is State.READY and DENSE in layout[w.target].usable}
    assert not roomy or DENSE not in made.waiting.values()
    for worker in made.fleet.workers:
        own = [(served, given) for _, at, served, given in made.running.values() if at is worker]
        assert all(served in layout[worker.target].usable and served <= given for served, given in own)
        if DENSE in layout[worker.target].usable:
            # Two places, of which the reserve keeps one.
            sparse = sum(given is not DENSE for _, given in own)
            assert sparse <= 2 - (2 * reserve)
    for tier in made.waiting.values():
        # Nor does a sparse one wait while a worker has room that is kept for nobody.
        free = [w for w in made.fleet.workers if w.state is State.READY and tier in layout[w.target].usable]
        assert all(reserve and DENSE in layout[w.target].usable and w.in_flight for w in free)
