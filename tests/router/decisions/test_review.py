"""A decision is reviewed before every attempt: what policy says by then counts, wherever the first decision led."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.costs import NO_SHAPES
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Scope, Tier
from sparsity_router.callers.admission import Callers
from sparsity_router.fleet.fleet import Admission
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.observing.observer import Observer
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics
from sparsity_router.relaying import relay
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, LONG, MODERATE, Policies, Rig, refusal, rig, until
from support.stores.snapshots import snapshot
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail, hang

Change = Callable[[Policies], None]


def kill(policies: Policies, scope: Scope = Scope.GLOBAL, target: str = "") -> None:
    there = policies.snapshot.overrides
    policies.snapshot = policies.snapshot.with_overrides((*there, Override("k", scope, target, reason="test")))


def kill_moderate(policies: Policies) -> None:
    kill(policies, Scope.TIER, "moderate")


def tighten(policies: Policies) -> None:
    policies.snapshot = edited(bands=[{"from_tokens": 0, "tier": "dense"}])


def forbid(policies: Policies) -> None:
    policies.snapshot = edited(detection={"literals": ["y" * 50], "flag": "abuse"})


def grow_old(policies: Policies) -> None:
    policies.age = 1e6


def edited(**fields: Any) -> Any:
    return snapshot([parse_policy({"domain": "low", "risk": "low", "bands": BANDS} | fields)])


def fails_after(change: Callable[[], None], code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Behaviour:
    """A worker that fails in prefill, before which something changes."""

    async def behave(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        change()
        async for response in fail(code)(worker, request, context):
            yield response

    return behave


class Changing:
    """A change that is made when it is asked for, at policies that are there later."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.at: Policies | None = None

    def __call__(self) -> None:
        assert self.at is not None
        self.change(self.at)


def fleet(folder: Path, behaviour: Behaviour) -> list[FakeWorker]:
    """One worker of the lighter tiers, and two aggressive ones, of which one behaves as told and is asked first."""
    model = tiny_model(folder)
    return [
        FakeWorker("d", DENSE, model),
        FakeWorker("m", MODERATE, model),
        FakeWorker("a1", AGGRESSIVE, model, behaviour=behaviour),
        FakeWorker("a2", AGGRESSIVE, model, outstanding=10**6),
    ]


CHANGES = {
    kill: inference_pb2.REASON_KILL_SWITCH,
    tighten: inference_pb2.REASON_LENGTH_BAND,
    forbid: inference_pb2.REASON_FLAGGED,
    grow_old: inference_pb2.REASON_STALE_POLICY,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_retry_goes_where_policy_says_by_then(tmp_path: Path, change: Change) -> None:
    then = Changing(change)
    workers = fleet(tmp_path, fails_after(then))
    async with rig(tmp_path, *workers) as at:
        then.at = at.policies
        _, completion = await at.generate()
        assert (completion.worker_id, completion.decision.reason) == ("d", CHANGES[change])
        assert completion.decision.policy_tier == DENSE
        assert not workers[1].received
        assert not workers[3].received


async def test_a_tier_that_is_killed_meanwhile_is_no_fallback(tmp_path: Path) -> None:
    then = Changing(kill_moderate)
    workers = fleet(tmp_path, fails_after(then))[:3]
    async with rig(tmp_path, *workers) as at:
        then.at = at.policies
        _, completion = await at.generate()
        assert (completion.worker_id, completion.decision.policy_tier) == ("d", AGGRESSIVE)


async def test_what_policy_loosens_meanwhile_does_not_count(tmp_path: Path) -> None:
    def loosen(policies: Policies) -> None:
        policies.snapshot = edited(bands=[{"from_tokens": 0, "tier": "aggressive"}])

    then = Changing(loosen)
    workers = fleet(tmp_path, answer)
    workers[1].behaviour = fails_after(then)
    async with rig(tmp_path, *workers) as at:
        then.at = at.policies
        assert (await at.generate("y" * 60))[1].worker_id == "d"


async def test_a_hedge_goes_where_policy_says_by_then(tmp_path: Path) -> None:
    workers = fleet(tmp_path, hang)
    async with rig(tmp_path, *workers, admission=Admission(hedge_seconds=0.3)) as at:
        asking = asyncio.create_task(at.generate())
        await until(lambda: workers[2].received)
        kill(at.policies)
        _, completion = await asking
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_KILL_SWITCH)
        assert not workers[3].received


async def test_a_count_that_is_asked_for_is_decided_by_what_policy_says_by_then(tmp_path: Path) -> None:
    then = Changing(kill)
    workers = fleet(tmp_path, fails_after(then, grpc.StatusCode.OUT_OF_RANGE))
    async with rig(tmp_path, *workers) as at:
        then.at = at.policies
        # So long that nobody counted it here.
        _, completion = await at.generate("y" * 400)
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_KILL_SWITCH)


class Slow(Callers):
    """Counts tokens in a store that takes its time, in which something changes."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    async def charge(self, *_: Any) -> None:
        await asyncio.sleep(0.01)
        self._then()


@pytest.mark.parametrize("direct", [False, True])
async def test_a_wait_for_the_tenants_tokens_is_reviewed(tmp_path: Path, direct: bool) -> None:
    then = Changing(kill)
    workers = fleet(tmp_path, answer)
    async with rig(tmp_path, *workers, callers=Slow(then), lease_keys=LeaseKeys(LeaseKey("", b"k" * 32))) as at:
        then.at = at.policies
        request = make_request(LONG, domain="low")
        if direct:
            routed = await at.stub.Route(inference_pb2.RouteRequest(request=request))
            assert (routed.endpoint, routed.decision.tier) == (workers[0].address, DENSE)
        else:
            assert (await at.generate())[1].worker_id == "d"


async def test_a_count_after_the_first_message_is_never_replayed(tmp_path: Path) -> None:
    workers = fleet(tmp_path, fail(grpc.StatusCode.OUT_OF_RANGE, after=2))
    async with rig(tmp_path, *workers) as at:
        got: list[str] = []

        async def read() -> None:
            async for response in at.stub.Generate(make_request(LONG, domain="low"), timeout=10.0):
                got.append(response.text)

        error = await refusal(read())
        assert (error.code(), got) == (grpc.StatusCode.ABORTED, ["x", "x"])
        assert sum(len(worker.received) for worker in workers) == 1


async def violations(at: Rig, found: Meter) -> list[int]:
    await at.generate()
    return [value for labels, value in found.values()["sparsity.router.policy.violations"] if labels]


@pytest.mark.parametrize("reviewed", [True, False])
async def test_a_violation_is_told_by_what_policy_says_by_then(
    tmp_path: Path, reviewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were an attempt made by the decision of an earlier one, the metric would say so."""
    if not reviewed:
        monkeypatch.setattr(relay._Relay, "_decide", lambda self: self.decision)
    then, found = Changing(kill), Meter()
    workers = fleet(tmp_path, fails_after(then))
    metrics = RequestMetrics(NO_SHAPES, found.meter)
    policies = cast(Any, Policies(edited()))
    observer = Observer(policies, Recorder(None), GuardMonitor(policies, None), metrics)
    async with rig(tmp_path, *workers, observer=observer) as at:
        then.at = at.policies
        assert await violations(at, found) == ([] if reviewed else [1])


async def test_a_stream_that_goes_on_while_the_switch_is_thrown_is_no_violation(tmp_path: Path) -> None:
    then, found = Changing(kill), Meter()

    async def turn(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in answer(worker, request, context):
            yield response
            if response.text == "a":
                then()

    metrics = RequestMetrics(NO_SHAPES, found.meter)
    policies = cast(Any, Policies(edited()))
    observer = Observer(policies, Recorder(None), GuardMonitor(policies, None), metrics)
    async with rig(tmp_path, *fleet(tmp_path, turn), observer=observer) as at:
        then.at = at.policies
        assert await violations(at, found) == []


async def test_the_override_of_a_tier_sees_the_tier_that_is_held(tmp_path: Path) -> None:
    """Policy gave moderate, would give aggressive by now, and moderate is killed: neither may serve."""

    def change(policies: Policies) -> None:
        kill_moderate(policies)
        loosened = edited(bands=[{"from_tokens": 0, "tier": "aggressive"}])
        policies.snapshot = replace(loosened, overrides=policies.snapshot.overrides)

    then = Changing(change)
    workers = fleet(tmp_path, answer)
    workers[1].behaviour = fails_after(then)
    async with rig(tmp_path, *workers, FakeWorker("m2", MODERATE, tmp_path, outstanding=10**6)) as at:
        then.at = at.policies
        _, completion = await at.generate("y" * 60)
        assert (completion.worker_id, completion.decision.policy_tier) == ("d", Tier.DENSE)
