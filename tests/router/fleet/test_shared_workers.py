"""Workers that serve several tiers: each tier proved, picked, reserved and doubted by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Tier
from sparsity_router.fleet.breaker import FAILURES_TO_OPEN
from sparsity_router.fleet.capabilities import by_tier, mismatch
from sparsity_router.fleet.fleet import Admission
from sparsity_router.fleet.workers import State
from support.routers.rig import AGGRESSIVE, DENSE, LONG, MODERATE, Rig, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail, hang

ALL = (DENSE, MODERATE, AGGRESSIVE)
# By length, the tiers that the rig's policy gives.
PROMPTS = {DENSE: "hi", MODERATE: "y" * 60, AGGRESSIVE: LONG}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


def shared(model: Path, name: str = "s", **options: Any) -> FakeWorker:
    return FakeWorker(name, DENSE, model, tiers=options.pop("tiers", ALL), **options)


async def served(r: Rig, tier: int) -> tuple[str, int, str]:
    """Who answered a request that policy gives ``tier``, at what tier, and why."""
    _, completion = await r.generate(PROMPTS[tier])
    decision = completion.decision
    assert completion.sparsity.tier == decision.tier
    return completion.worker_id, decision.tier, inference_pb2.Reason.Name(decision.reason)


async def test_one_worker_serves_every_tier(model: Path) -> None:
    async with rig(model, shared(model)) as r:
        for tier in ALL:
            assert await served(r, tier) == ("s", tier, "REASON_LENGTH_BAND")
        assert [request.tier for request in r.workers[0].received] == list(ALL)
        assert r.fleet.workers[0].tiers == set(Tier)


@pytest.mark.parametrize(
    ("unproven", "given"),
    [
        ((AGGRESSIVE,), {DENSE: DENSE, MODERATE: MODERATE, AGGRESSIVE: MODERATE}),
        ((MODERATE, AGGRESSIVE), {DENSE: DENSE, MODERATE: DENSE, AGGRESSIVE: DENSE}),
        ((MODERATE,), {DENSE: DENSE, MODERATE: DENSE, AGGRESSIVE: AGGRESSIVE}),
    ],
)
async def test_a_tier_without_proof_is_not_used_and_the_others_are(
    model: Path, unproven: tuple[int, ...], given: dict[int, int]
) -> None:
    async with rig(model, shared(model, unproven=unproven)) as r:
        for tier, at in given.items():
            reason = "REASON_MISSING_TELEMETRY" if at != tier else "REASON_LENGTH_BAND"
            assert await served(r, tier) == ("s", at, reason)
        worker = r.fleet.workers[0]
        assert worker.state is State.READY
        assert worker.problem.count("its start-up proof shows no sparse kernel call") == len(unproven)
        assert [worker.state_at(tier) is State.UNPROVEN for tier in Tier] == [tier in unproven for tier in ALL]


async def test_a_dense_tier_that_pruned_at_the_start_takes_no_dense_request(model: Path) -> None:
    async with rig(model, shared(model, unproven=(DENSE,)), shared(model, "late", outstanding=10**6)) as r:
        assert [(await served(r, DENSE))[0] for _ in range(3)] == ["late"] * 3
        assert (await served(r, AGGRESSIVE))[0] == "s"
        assert r.fleet.workers[0].problem == "dense: its start-up proof shows sparse kernel calls"


async def test_without_any_proof_it_is_not_used_at_all(model: Path) -> None:
    async with rig(model, shared(model, unproven=ALL)) as r:
        assert r.fleet.workers[0].state is State.UNPROVEN
        assert (await refusal(r.generate(LONG))).code() is grpc.StatusCode.UNAVAILABLE


async def test_silence_of_a_sparse_answer_costs_that_tier_only(model: Path) -> None:
    async with rig(model, shared(model, reports=False)) as r:
        await r.generate(PROMPTS[AGGRESSIVE])
        _, completion = await r.generate(PROMPTS[AGGRESSIVE])
        assert completion.decision.tier == MODERATE
        assert completion.decision.reason == inference_pb2.REASON_MISSING_TELEMETRY
        assert r.fleet.workers[0].trusted == {Tier.DENSE}
        _, completion = await r.generate(PROMPTS[DENSE])
        assert completion.decision.tier == DENSE


@pytest.mark.parametrize("asked", [DENSE, MODERATE])
async def test_an_engine_that_mixes_tiers_up_is_believed_at_none(model: Path, asked: int) -> None:
    async def lie(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in answer(worker, request, context):
            if response.HasField("completion"):
                response.completion.sparsity.tier = AGGRESSIVE
            yield response

    async with rig(model, shared(model, behaviour=lie), shared(model, "t", outstanding=10**6)) as r:
        _, completion = await r.generate(PROMPTS[asked])
        assert completion.worker_id == "s"
        assert r.fleet.workers[0].state is State.UNPROVEN
        assert [(await served(r, tier))[0] for tier in ALL] == ["t"] * 3


async def test_a_failure_is_no_reason_to_ask_the_same_worker_at_a_denser_tier(model: Path) -> None:
    broken = shared(model, behaviour=fail(grpc.StatusCode.INTERNAL))
    async with rig(model, broken) as r:
        assert (await refusal(r.generate(LONG))).code() is grpc.StatusCode.UNAVAILABLE
        assert [request.tier for request in broken.received] == [AGGRESSIVE]
    pool = FakeWorker("m", MODERATE, model)
    broken = shared(model, behaviour=fail(grpc.StatusCode.INTERNAL))
    async with rig(model, broken, shared(model, "peer", outstanding=10**6), pool) as r:
        # A peer of the tier first, then a denser one.
        assert await served(r, AGGRESSIVE) == ("peer", AGGRESSIVE, "REASON_LENGTH_BAND")
        r.workers[1].behaviour = broken.behaviour
        await until(lambda: r.fleet.workers[0].state is State.READY)
        assert await served(r, AGGRESSIVE) == ("m", MODERATE, "REASON_TIER_UNAVAILABLE")


async def test_a_tier_whose_workers_are_merely_full_is_not_called_unavailable(model: Path) -> None:
    pool = FakeWorker("a", AGGRESSIVE, model, behaviour=hang, places=1)
    async with rig(model, pool, FakeWorker("d", DENSE, model)) as r:
        waiting = asyncio.create_task(r.generate(LONG))
        await until(lambda: pool.received)
        _, completion = await r.generate(LONG)
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_TIER_FULL)
        assert completion.decision.explanation.startswith("policy gives aggressive, whose workers are full; ")
        waiting.cancel()
        await until(lambda: r.fleet.workers[0].state is State.READY)
        await pool.stop()
        await until(lambda: r.fleet.workers[0].state is State.UNREACHABLE)
        assert await served(r, AGGRESSIVE) == ("d", DENSE, "REASON_TIER_UNAVAILABLE")


async def test_a_tier_whose_room_is_kept_for_what_is_dense_is_full(model: Path) -> None:
    both, pool = shared(model, tiers=(DENSE, AGGRESSIVE), behaviour=hang, places=2), FakeWorker("m", MODERATE, model)
    async with rig(model, both, pool, admission=Admission(queue_seconds=0.0, dense_reserve=0.5)) as r:
        waiting = asyncio.create_task(r.generate(LONG))
        await until(lambda: both.received)
        assert r.fleet.workers[0].state_at(Tier.AGGRESSIVE) is State.READY
        assert await served(r, AGGRESSIVE) == ("m", MODERATE, "REASON_TIER_FULL")
        waiting.cancel()


async def test_failures_at_one_tier_break_the_worker_at_that_tier_only(model: Path) -> None:
    fails = fail(grpc.StatusCode.INTERNAL)

    async def behave(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in (fails if request.tier == AGGRESSIVE else answer)(worker, request, context):
            yield response

    async with rig(model, shared(model, behaviour=behave)) as r:
        worker = r.fleet.workers[0]
        for _ in range(FAILURES_TO_OPEN):
            assert (await refusal(r.generate(LONG))).code() is grpc.StatusCode.UNAVAILABLE
            await until(lambda: worker.state is State.READY)
        states = {tier: worker.state_at(tier) for tier in Tier}
        assert states == {Tier.DENSE: State.READY, Tier.MODERATE: State.READY, Tier.AGGRESSIVE: State.BROKEN}
        assert worker.breaker_word == "open"
        assert await served(r, DENSE) == ("s", DENSE, "REASON_LENGTH_BAND")
        assert await served(r, AGGRESSIVE) == ("s", MODERATE, "REASON_TIER_UNAVAILABLE")
        for tier in (Tier.DENSE, Tier.MODERATE):
            for _ in range(FAILURES_TO_OPEN):
                worker.breakers[tier].failure()
        assert worker.state is worker.state_at(Tier.DENSE) is State.BROKEN


async def test_a_tier_that_a_worker_no_longer_serves_is_asked_of_another(model: Path) -> None:
    changed = shared(model)
    async with rig(model, changed, shared(model, "t", outstanding=10**6)) as r:
        # As one that came back with other tiers, which this router has not read yet.
        changed.tiers = (DENSE,)
        assert await served(r, AGGRESSIVE) == ("t", AGGRESSIVE, "REASON_LENGTH_BAND")
        assert not changed.received


async def test_what_callers_get_wrong_is_theirs_all_the_same(model: Path) -> None:
    async def refuse(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "sampling: no")
        yield inference_pb2.GenerateResponse()

    async with rig(model, shared(model, behaviour=refuse), shared(model, "t", outstanding=10**6)) as r:
        assert (await refusal(r.generate(LONG))).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not r.workers[1].received


async def test_a_worker_that_comes_back_with_other_tiers_is_picked_by_those(model: Path) -> None:
    worker = shared(model)
    async with rig(model, worker, FakeWorker("d", DENSE, model, outstanding=10**6)) as r:
        assert await served(r, AGGRESSIVE) == ("s", AGGRESSIVE, "REASON_LENGTH_BAND")
        worker.come_back((MODERATE,))
        await until(lambda: r.fleet.workers[0].tiers == {Tier.MODERATE})
        await until(lambda: r.fleet.workers[0].state is State.READY)
        assert await served(r, AGGRESSIVE) == ("s", MODERATE, "REASON_TIER_UNAVAILABLE")
        assert (await served(r, DENSE))[0] == "d"
        worker.come_back((MODERATE, AGGRESSIVE))
        await until(lambda: Tier.AGGRESSIVE in r.fleet.workers[0].tiers)
        await until(lambda: r.fleet.workers[0].state is State.READY)
        assert await served(r, AGGRESSIVE) == ("s", AGGRESSIVE, "REASON_LENGTH_BAND")


async def test_places_are_kept_for_what_policy_holds_dense(model: Path) -> None:
    worker = shared(model, requests=3)
    async with rig(model, worker, admission=Admission(queue_seconds=0.0, dense_reserve=0.25)) as r:
        for tier in (MODERATE, AGGRESSIVE):
            error = await refusal(r.generate(PROMPTS[tier]))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served(r, DENSE) == ("s", DENSE, "REASON_LENGTH_BAND")
        assert [request.tier for request in worker.received] == [DENSE]


@pytest.mark.parametrize(("outstanding", "room"), [(749, True), (751, False)])
async def test_cache_is_kept_for_what_policy_holds_dense(model: Path, outstanding: int, *, room: bool) -> None:
    worker = shared(model, requests=1, outstanding=outstanding, kv_capacity=1000)
    async with rig(model, worker, admission=Admission(queue_seconds=0.0, dense_reserve=0.25)) as r:
        if room:
            assert (await served(r, AGGRESSIVE))[1] == AGGRESSIVE
        else:
            error = await refusal(r.generate(LONG))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await served(r, DENSE))[1] == DENSE


@pytest.mark.parametrize("options", [{"tiers": (MODERATE, AGGRESSIVE)}, {"unproven": (DENSE,)}])
async def test_where_nothing_dense_may_come_nothing_is_kept(model: Path, options: dict[str, Any]) -> None:
    worker = shared(model, requests=3, outstanding=900, kv_capacity=1000, **options)
    async with rig(model, worker, admission=Admission(queue_seconds=0.0, dense_reserve=0.25)) as r:
        assert (await served(r, AGGRESSIVE))[1] == AGGRESSIVE


async def test_a_pool_of_the_sparse_tier_is_preferred_where_it_has_room(model: Path) -> None:
    pool = FakeWorker("a", AGGRESSIVE, model)
    async with rig(model, shared(model), pool) as r:
        assert {(await served(r, AGGRESSIVE))[0] for _ in range(8)} == {"a"}
        pool.requests = pool.places
        await until(lambda: r.fleet.workers[1].state is State.FULL)
        assert await served(r, AGGRESSIVE) == ("s", AGGRESSIVE, "REASON_LENGTH_BAND")


async def test_reasoning_is_asked_where_the_tier_can_decode_it_densely(model: Path) -> None:
    async with rig(model, shared(model, densifies=False), shared(model, "able", outstanding=10**6)) as r:
        assert {(await r.generate(LONG, dense_reasoning=True))[1].worker_id for _ in range(3)} == {"able"}
        # The dense tier needs nothing for it.
        assert (await r.generate("hi", dense_reasoning=True))[1].worker_id == "s"


async def test_requests_are_counted_by_tier(model: Path) -> None:
    release = asyncio.Event()

    async def hold(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await release.wait()
        async for response in answer(worker, request, context):
            yield response

    held = {DENSE: 2, AGGRESSIVE: 3}
    one = shared(model, requests=5, held=held, places=64, behaviour=hold)
    async with rig(model, one, FakeWorker("m", MODERATE, model, requests=1)) as r:
        counts = [[worker.requests_at(tier) for tier in Tier] for worker in r.fleet.workers]
        assert counts == [[2, 0, 3], [0, 1, 0]]
        asked = [asyncio.create_task(r.generate(PROMPTS[tier])) for tier in (DENSE, DENSE, AGGRESSIVE)]
        await until(lambda: r.fleet.workers[0].in_flight == 3)
        assert [r.fleet.workers[0].in_flight_at(tier) for tier in Tier] == [2, 0, 1]
        release.set()
        await asyncio.gather(*asked)
        assert not any(r.fleet.workers[0].in_flight_at(tier) for tier in Tier)


def told(*tiers: int, **fields: Any) -> worker_pb2.GetCapabilitiesResponse:
    served_at = [worker_pb2.TierCapabilities(tier=tier) for tier in tiers]  # type: ignore[arg-type]
    return worker_pb2.GetCapabilitiesResponse(tiers=served_at, tokenizer_digest="d", **fields)


def test_what_a_worker_says_of_one_tier_counts_where_it_knows_no_more() -> None:
    proof = worker_pb2.BackendProof(sparse_kernel_calls=3, density=0.25)
    own = worker_pb2.GetCapabilitiesResponse(
        tier=AGGRESSIVE, profile="p@1", proof=proof, sparse_from=9, dense_reasoning=True
    )
    own.engine.crossover = "from 8192"
    ((tier, found),) = by_tier(own).items()
    assert tier is Tier.AGGRESSIVE
    assert (found.profile, found.proof, found.sparse_from) == ("p@1", proof, 9)
    assert (found.dense_reasoning, found.crossover) == (True, "from 8192")


def test_tiers_come_the_densest_first_and_unknown_ones_are_left_out() -> None:
    assert list(by_tier(told(AGGRESSIVE, 77, DENSE, tier=DENSE))) == [Tier.DENSE, Tier.AGGRESSIVE]
    # What one says of all its tiers counts, and not the field that older routers read.
    assert list(by_tier(told(MODERATE, tier=DENSE))) == [Tier.MODERATE]


@pytest.mark.parametrize(
    ("tiers", "problem"),
    [
        ((), "it names no tier"),
        ((77,), "it names no tier"),
        ((DENSE, DENSE), "it names the tier dense twice"),
        (ALL, ""),
    ],
)
def test_a_worker_whose_tiers_make_no_sense_is_not_used(tiers: tuple[int, ...], problem: str) -> None:
    assert mismatch(told(*tiers), "d", "sglang") == problem
