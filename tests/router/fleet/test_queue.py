"""Waiting for room: order, bounds, deadlines, and whom dense workers are kept for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_policies.model import Tier
from sparsity_router.config import RouterConfig
from sparsity_router.fleet import workers
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.queue import TierQueue
from sparsity_router.relaying.turns import follow_policies
from sparsity_rpc.errors import ConfigurationError, OverloadedError
from support.routers.rig import rig as fake_rig
from support.routers.rig import until as until_true
from support.routers.router import Router, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail

DENSE, MODERATE = inference_pb2.TIER_DENSE, inference_pb2.TIER_MODERATE


async def served(queue: TierQueue, names: list[tuple[str, int]], seconds: float = 5.0) -> list[str]:
    """Names in the order in which they got their turn, when each makes room for the next."""
    order: list[str] = []

    async def one(name: str, priority: int) -> None:
        with queue.ticket(priority) as ticket:
            await queue.turn(ticket, seconds)
            order.append(name)

    tasks = [asyncio.create_task(one(name, priority)) for name, priority in names]
    await asyncio.sleep(0)
    queue.wake()
    await asyncio.gather(*tasks)
    return order


async def test_the_urgent_come_first_then_the_early() -> None:
    assert await served(TierQueue(9), [("a", 0), ("b", 5), ("c", 0), ("d", 9), ("e", 5)]) == ["d", "b", "e", "a", "c"]


async def test_a_full_queue_refuses_or_gives_up_its_last() -> None:
    queue = TierQueue(2)
    refused: list[str] = []

    async def one(name: str, priority: int) -> None:
        try:
            with queue.ticket(priority) as ticket:
                await queue.turn(ticket, 0.5)
        except OverloadedError as error:
            refused.append(f"{name}: {error}")

    tasks = []
    for name, priority in (("a", 3), ("b", 1), ("late", 1), ("urgent", 9)):
        tasks.append(asyncio.create_task(one(name, priority)))
        await asyncio.sleep(0.01)
    assert refused == ["late: the queue holds its 2 requests; try again",
                       "b: a request that comes first took the place in the queue; try again"]  # fmt: skip
    await asyncio.gather(*tasks)
    # Its leaving gave the other one a turn.
    assert refused[2:] == ["a: there was no room in time; try again"]
    assert not len(queue)


async def test_who_leaves_lets_the_next_try() -> None:
    queue = TierQueue(4)
    gone = asyncio.create_task(served(queue, [("gone", 9)], 5.0))
    await asyncio.sleep(0.05)
    gone.cancel()
    assert await served(queue, [("a", 0), ("b", 0)]) == ["a", "b"]
    assert not len(queue)


async def test_tenants_take_turns_by_tokens_within_a_priority() -> None:
    queue, order, left = TierQueue(99), [], asyncio.Semaphore(0)

    async def one(name: str, priority: int, tokens: int) -> None:
        with queue.ticket(priority, name[0], tokens) as ticket:
            await queue.turn(ticket, 5.0)
            order.append(name)
            queue.leave(ticket)
            left.release()

    flood = [("f1", 0, 100), ("f2", 0, 100), ("f3", 0, 100), ("f4", 0, 100)]
    others = [("a1", 0, 250), ("a2", 0, 10), ("b1", 0, 10), ("b2", 0, 10), ("f9", 5, 10)]
    tasks = [asyncio.create_task(one(*ticket)) for ticket in flood + others]
    await asyncio.sleep(0)
    queue.wake()
    await asyncio.gather(*tasks)
    # Start tags: f 0 100 200 300, a 0 250, b 0 10; the urgent first, whoever sends it.
    assert order == ["f9", "f1", "a1", "b1", "b2", "f2", "f3", "a2", "f4"]


async def test_a_flooded_queue_gives_up_its_flooders_last() -> None:
    queue, lost = TierQueue(3), []

    async def one(name: str) -> None:
        try:
            with queue.ticket(0, name[0], 10) as ticket:
                await queue.turn(ticket, 0.2)
        except OverloadedError as error:
            lost.append(f"{name}: {error}")

    tasks = []
    for name in ("f1", "f2", "f3", "f4", "a1", "b1"):
        tasks.append(asyncio.create_task(one(name)))
        await asyncio.sleep(0.01)
    assert [words.partition(":")[0] for words in lost] == ["f4", "f3", "f2"]
    await asyncio.gather(*tasks)
    # What was given up is not held against its tenant.
    with queue.ticket(0, "f", 10) as ticket:
        assert ticket.place[1] == 0


async def hold(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    """Answers once the test lets it."""
    await worker.release.wait()  # type: ignore[attr-defined]
    async for response in answer(worker, request, context):
        yield response


@asynccontextmanager
async def rig(folder: Path, **config: Any) -> AsyncIterator[tuple[Router, FakeWorker, FakeWorker]]:
    """A dense and a moderate worker that answer when they are let, four requests each."""
    model = tiny_model(folder / "model")
    workers = [
        FakeWorker("dense", DENSE, model, behaviour=hold),
        FakeWorker("moderate", MODERATE, model, behaviour=hold),
    ]
    for worker in workers:
        worker.release = asyncio.Event()  # type: ignore[attr-defined]
        await worker.start()
    with Valkey() as server:
        targets = tuple(worker.address for worker in workers)
        options: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 0.1} | config
        async with running(RouterConfig(model, targets, server.url, **options)) as router:
            await router.edit("rag", bands=[(0, MODERATE)])
            await asyncio.sleep(0.3)
            yield router, workers[0], workers[1]
    for worker in workers:
        await worker.stop()


def ask(client: AsyncWireClient, domain: str, priority: int = 0, timeout: float = 10.0) -> asyncio.Task[int]:
    async def run() -> int:
        request = make_request("hello", domain=domain)
        request.priority = priority
        tier = 0
        async for response in client.generate(request, timeout):
            tier = response.completion.decision.tier if response.HasField("completion") else tier
        return tier

    return asyncio.create_task(run())


async def received(worker: FakeWorker, count: int) -> None:
    async def there() -> bool:
        return len(worker.received) >= count

    await until(there)


async def test_a_dense_request_waits_for_a_dense_worker(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, dense, moderate), AsyncWireClient(router.address) as client:
        first = [ask(client, "medical") for _ in range(4)]
        await received(dense, 4)
        waiting = [ask(client, "medical") for _ in range(3)]
        await asyncio.sleep(0.3)
        assert len(dense.received) == 4
        dense.release.set()  # type: ignore[attr-defined]
        assert await asyncio.gather(*first, *waiting) == [DENSE] * 7
        # Nobody was sent elsewhere meanwhile.
        assert not moderate.received


async def test_urgent_requests_overtake(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, dense, _), AsyncWireClient(router.address) as client:
        first = [ask(client, "medical") for _ in range(4)]
        await received(dense, 4)
        late = [ask(client, "medical", priority) for priority in (0, 0, 9)]
        await asyncio.sleep(1.0)
        dense.release.set()  # type: ignore[attr-defined]
        await asyncio.gather(*first, *late)
        assert dense.received[4].priority == 9


async def test_who_waits_in_vain_is_told_to_come_back(tmp_path: Path) -> None:
    async with rig(tmp_path, queue_seconds=0.3) as (router, dense, _), AsyncWireClient(router.address) as client:
        first = [ask(client, "medical") for _ in range(4)]
        await received(dense, 4)
        with pytest.raises(OverloadedError, match="no room in time"):
            await ask(client, "medical")
        dense.release.set()  # type: ignore[attr-defined]
        await asyncio.gather(*first)


async def test_a_worker_that_says_it_is_full_is_not_pestered(tmp_path: Path) -> None:
    async with rig(tmp_path, queue_seconds=1.0) as (router, dense, _), AsyncWireClient(router.address) as client:
        dense.behaviour = fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
        with pytest.raises(OverloadedError):
            await ask(client, "medical")
        assert 2 <= len(dense.received) <= 6


async def test_a_client_that_leaves_leaves_the_queue(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, dense, _), AsyncWireClient(router.address) as client:
        first = [ask(client, "medical") for _ in range(4)]
        await received(dense, 4)
        gone, stays = ask(client, "medical", 9), ask(client, "medical")
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.sleep(0.2)
        dense.release.set()  # type: ignore[attr-defined]
        assert await asyncio.gather(*first, stays) == [DENSE] * 5
        assert len(dense.received) == 5


async def test_spilled_requests_leave_the_reserve_to_what_policy_holds_dense(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, dense_reserve=0.5, queue_seconds=0.5) as (router, dense, moderate),
        AsyncWireClient(router.address) as client,
    ):
        sparse = [ask(client, "rag") for _ in range(4)]
        await received(moderate, 4)
        spilled = [ask(client, "rag") for _ in range(4)]
        await received(dense, 2)
        # Two of the dense worker's four places are kept; two spilled requests wait in vain.
        held = [ask(client, "medical") for _ in range(2)]
        await received(dense, 4)
        await asyncio.sleep(0.6)
        dense.release.set()  # type: ignore[attr-defined]
        moderate.release.set()  # type: ignore[attr-defined]
        results = await asyncio.gather(*sparse, *spilled, *held, return_exceptions=True)
        assert results[:4] == [MODERATE] * 4
        assert [kind for kind in results[4:8] if kind == DENSE] == [DENSE] * 2
        assert sum(isinstance(kind, OverloadedError) for kind in results[4:8]) == 2
        assert results[8:] == [DENSE] * 2


async def test_a_kill_switch_counts_for_those_who_wait(tmp_path: Path) -> None:
    async with rig(tmp_path, dense_reserve=0.5) as (router, dense, moderate), AsyncWireClient(router.address) as client:
        sparse = [ask(client, "rag") for _ in range(4)]
        await received(moderate, 4)
        spilled = [ask(client, "rag") for _ in range(2)]
        await received(dense, 2)
        waiting = ask(client, "rag")
        await asyncio.sleep(0.2)
        override = policy_pb2.Override(scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="incident")
        await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
        moderate.release.set()  # type: ignore[attr-defined]
        await asyncio.gather(*sparse)
        dense.release.set()  # type: ignore[attr-defined]
        # There was room at the moderate worker first; policy holds the request dense by now.
        assert await waiting == DENSE
        assert len(moderate.received) == 4
        await asyncio.gather(*spilled)


async def test_who_is_held_dense_by_now_takes_the_room_that_is_kept_before_others(
    tmp_path: Path,
) -> None:
    """A tenant's kill switch, while two wait for a worker that serves every tier and keeps what is left for dense."""
    model = tiny_model(tmp_path / "model")
    tiers = (DENSE, MODERATE, inference_pb2.TIER_AGGRESSIVE)
    shared = FakeWorker("shared", DENSE, model, tiers=tiers, requests=3)
    await shared.start()
    with Valkey() as server:
        config = RouterConfig(model, (shared.address,), server.url, "127.0.0.1:0", drain_seconds=0.1)
        async with running(config) as router, AsyncWireClient(router.address) as client:
            await router.edit("rag", bands=[(0, MODERATE)])
            await router.becomes("TIER_MODERATE")
            await asyncio.sleep(0.3)

            async def answered(tenant: str) -> int:
                stream = client.generate(make_request("hello", domain="rag", tenant=tenant), 20.0)
                return [response.completion.decision.tier async for response in stream][-1]

            first = asyncio.create_task(answered("one"))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(answered("other"))
            await asyncio.sleep(0.3)
            assert not shared.received
            scope = policy_pb2.OVERRIDE_SCOPE_TENANT
            override = policy_pb2.Override(scope=scope, target="other", reason="incident")
            await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
            assert await asyncio.wait_for(second, 5.0) == DENSE
            assert not first.done()
            shared.requests = 0
            assert await first == MODERATE
    await shared.stop()


async def test_an_unreachable_tier_is_told_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, dense, _), AsyncWireClient(router.address) as client:
        dense.draining = True
        await asyncio.sleep(0.2)
        started = asyncio.get_running_loop().time()
        with pytest.raises(Exception, match="no dense worker can be reached"):
            await ask(client, "medical")
        assert asyncio.get_running_loop().time() - started < 5


def test_bad_bounds_are_refused(tmp_path: Path) -> None:
    for wrong in ({"queue_seconds": -1.0}, {"dense_reserve": 1.0}, {"queue_limit": -1}, {"hedge_seconds": -1.0}):
        with pytest.raises(ConfigurationError, match=r"--queue|--dense-reserve|--hedge"):
            RouterConfig(tiny_model(tmp_path), ("a:1",), "redis://x", **wrong)  # type: ignore[arg-type]


async def test_who_waits_for_what_others_do_not_need_holds_up_nobody(tmp_path: Path) -> None:
    """One that must decode reasoning densely waits for the only worker that can, beside an idle one that cannot."""
    model = tiny_model(tmp_path)
    release = asyncio.Event()

    async def held(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        await release.wait()
        async for response in answer(worker, request, context):
            yield response

    able = FakeWorker("able", MODERATE, model, behaviour=held, places=1)
    plain = FakeWorker("plain", MODERATE, model, densifies=False, places=2)
    async with fake_rig(model, able, plain, admission=Admission(queue_seconds=10.0)) as r:
        text = "y" * 60
        first = asyncio.create_task(r.generate(text, dense_reasoning=True))
        await until_true(lambda: able.received)
        waiting = asyncio.create_task(r.generate(text, dense_reasoning=True))
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        others = await asyncio.gather(*(r.generate(text) for _ in range(5)))
        assert {completion.worker_id for _, completion in others} == {"plain"}
        assert asyncio.get_running_loop().time() - started < 5.0
        assert not waiting.done()
        release.set()
        found = await asyncio.gather(first, waiting)
        assert [completion.worker_id for _, completion in found] == ["able"] * 2


async def test_who_is_first_takes_room_before_those_that_were_let_past() -> None:
    queue, order = TierQueue(8), list[str]()
    with queue.ticket(0, need="much") as first, queue.ticket(0, need="less") as second:
        queue.wake()
        await queue.turn(first, 1.0)
        queue.rejoin(first, refused=False)
        await queue.turn(second, 1.0)
        queue.rejoin(second, refused=False)
        queue.wake()
        for name, ticket in (("first", first), ("second", second)):
            if ticket.woken.is_set():
                order.append(name)
    assert order == ["first"]


async def test_a_turn_in_vain_is_passed_on_once_a_need() -> None:
    queue = TierQueue(8)
    with (
        queue.ticket(0, need="much") as first,
        queue.ticket(0, need="much") as second,
        queue.ticket(0, need="less") as third,
        queue.ticket(0, need="less") as fourth,
    ):
        # Others waited when it came, and none of them for the same.
        assert [ticket.woken.is_set() for ticket in (first, second, third, fourth)] == [False, False, True, False]
        queue.wake()
        await queue.turn(first, 1.0)
        await queue.turn(third, 1.0)
        queue.rejoin(first)
        assert [ticket.woken.is_set() for ticket in (first, second, third, fourth)] == [False, False, True, False]
        await queue.turn(third, 1.0)
        queue.rejoin(third)
        assert not any(ticket.woken.is_set() for ticket in (first, second, third, fourth))


async def test_who_waits_for_something_else_keeps_its_place_and_not_the_turn() -> None:
    queue = TierQueue(2)
    with queue.ticket(0) as first:
        queue.wake()
        await queue.turn(first, 1.0)
        async with queue.aside(first, 1.0):
            # It has the place of one of two, and who comes meanwhile need not wait for it.
            with queue.ticket(0) as second:
                await queue.turn(second, 1.0)
                with pytest.raises(OverloadedError, match="holds its 2"), queue.ticket(0):
                    pass
                queue.rejoin(second)
                queue.wake()
                assert [ticket.woken.is_set() for ticket in (first, second)] == [False, True]
        await queue.turn(first, 1.0)
        with pytest.raises(OverloadedError, match="no room in time"):
            async with queue.aside(first, 0.05):
                await asyncio.sleep(5.0)
        # A more urgent one may take the place all the same.
        async with queue.aside(first, 1.0):
            with queue.ticket(9), queue.ticket(9):
                pass
        with pytest.raises(OverloadedError, match="took the place"):
            await queue.turn(first, 1.0)


async def test_who_waited_in_vain_leaves_no_trace_of_its_tenant() -> None:
    queue = TierQueue(4)
    for number in range(3):
        with pytest.raises(OverloadedError), queue.ticket(0, f"tenant{number}", 10) as ticket:
            await queue.turn(ticket, 0.0)
    assert not queue._next
    with queue.ticket(0, "here", 10) as first, pytest.raises(OverloadedError), queue.ticket(0, "here", 10) as second:
        await queue.turn(second, 0.0)
    # What it gave back is that turn, no other.
    assert (first.place[1], queue._next) == (0, {})


def test_a_ticket_is_charged_once_however_often_it_is_sent() -> None:
    told: list[int] = []
    queue = TierQueue(4, told.append)
    with queue.ticket(0, "t", 10) as ticket:
        for _ in range(3):
            queue.leave(ticket)
            queue.rejoin(ticket)
        queue.leave(ticket)
    assert told == [10, 0, 0, 0]


async def test_a_lease_that_nobody_brought_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_EXPECTED_SECONDS", 0.05)
    async with fake_rig(tmp_path, FakeWorker("d", DENSE, tiny_model(tmp_path))) as r:
        worker, rooms = r.fleet.workers[0], list[int]()
        monkeypatch.setattr(worker, "_room", lambda: rooms.append(worker.in_flight))
        # Its load reports tell of room, too: one that has ended them does not.
        watching = r.fleet._watching[worker]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        rooms.clear()
        worker.expect("r", Tier.DENSE, 5)
        assert worker.in_flight == 1
        await until_true(lambda: rooms)
        assert rooms == [0]


async def test_those_who_wait_meet_a_change_one_by_one_and_each_change() -> None:
    """To be decided anew takes the loop for a while: what else is to be done is done between two of them."""
    fleet = Fleet((), "digest", 1.0)
    changes = asyncio.Queue[int]()
    met: list[tuple[str, int]] = []
    now = 0

    class Following:
        async def snapshots(self) -> AsyncIterator[int]:
            while True:
                yield await changes.get()

    def change() -> None:
        nonlocal now
        now += 1
        changes.put_nowait(now)

    async def waits(tier: Tier, name: str) -> None:
        with fleet.queues[tier].ticket(0) as ticket:
            while True:
                await fleet.queues[tier].turn(ticket, 5.0)
                met.append((name, now))
                if (name, now) == ("dense1", 1):
                    # While others have not met the one before.
                    change()
                fleet.queues[tier].rejoin(ticket, refused=False)

    async def runs() -> None:
        while True:
            met.append(("else", 0))
            await asyncio.sleep(0)

    names = [(tier, f"{tier.word}{number}") for tier in (Tier.DENSE, Tier.MODERATE) for number in range(4)]
    tasks = [asyncio.create_task(waits(*each)) for each in names]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(runs()), asyncio.create_task(follow_policies([fleet], cast(Any, Following())))]
    change()
    await until_true(lambda: {name for name, seen in met if seen == 2} == {name for _, name in names})
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not any("else" not in (a, b) for (a, _), (b, _) in itertools.pairwise(met))
    first = dict.fromkeys(name for name, _ in met if name != "else")
    assert list(first) == [name for _, name in names]
    await fleet.close()
