"""The quality guard, whatever callers name their metrics."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.journal import Outcome
from sparsity_policies.decisions.rollout import HELD_BACK, ROLLED_OUT, Action, halt, move
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Policy, Rollout, Scope, Tier
from sparsity_policies.wire import policy_from_wire, policy_to_wire
from sparsity_router.following import rollouts, windows
from sparsity_router.following.guards import ACTOR, GuardMonitor, override_id
from sparsity_router.following.guards import capped as cap_of
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.windows import MIN_SAMPLES
from sparsity_rpc.errors import InvalidRequestError
from support.routers.rig import Policies
from support.stores.snapshots import snapshot, stored

DOCUMENT: dict[str, Any] = {
    "domain": "low",
    "risk": "low",
    "bands": [{"from_tokens": 0, "tier": "aggressive"}],
    "guards": {"max_quality_dip": 0.1},
}


class Guarded(Policies):
    """A snapshot, and overrides beside it."""

    def __init__(self, **guards: Any) -> None:
        policy = parse_policy(DOCUMENT | {"guards": DOCUMENT["guards"] | guards})
        super().__init__(snapshot([policy]))
        self.overrides = Overrides(lambda: None)


def outcome(metric: str, arm: str, score: float) -> Outcome:
    return Outcome("d", "low", Tier.AGGRESSIVE, arm, metric, score, ())


async def capped(made_up: int, beside: int) -> list[Override]:
    """What acts after a dip was reported, under so many made-up names before it and beside each report of it."""
    policies = Guarded()
    monitor = GuardMonitor(cast(Any, policies), None)
    for number in range(made_up):
        for arm in (ROLLED_OUT, HELD_BACK) * MIN_SAMPLES:
            monitor.outcome(outcome(f"made up {number}", arm, 0.5))
    for number in range(MIN_SAMPLES):
        for arm, score in ((HELD_BACK, 0.9), (ROLLED_OUT, 0.5)):
            monitor.outcome(outcome("exact_match", arm, score))
            for other in range(beside):
                monitor.outcome(outcome(f"{number} {arm} {other}", arm, 0.5))
    await asyncio.sleep(0.01)
    return policies.overrides.active()


@pytest.mark.parametrize(("made_up", "beside"), [(0, 0), (16, 0), (100, 0), (0, 10), (100, 10)])
async def test_a_dip_is_seen_under_any_number_of_made_up_names(made_up: int, beside: int) -> None:
    found = await capped(made_up, beside)
    assert [override.id for override in found] == [override_id("low")]
    assert "exact_match 0.500 rolled out against 0.900 held back" in found[0].reason


async def test_only_the_metric_that_policy_names_counts() -> None:
    policies = Guarded(quality_metric="exact_match")
    monitor = GuardMonitor(cast(Any, policies), None)

    async def report(metric: str, rolled: float) -> list[Override]:
        for arm, score in ((HELD_BACK, 0.9), (ROLLED_OUT, rolled)):
            monitor.outcome(outcome(metric, arm, score))
        await asyncio.sleep(0)
        return policies.overrides.active()

    for number in range(MIN_SAMPLES):
        # Neither a made-up dip halts it, nor do made-up names crowd out what counts, one report after the other.
        for other in range(40):
            assert await report("thumbs", 0.1) == await report(f"{number} {other}", 0.9) == []
        if number < MIN_SAMPLES - 1:
            assert await report("exact_match", 0.5) == []
    await report("exact_match", 0.5)
    await asyncio.sleep(0.01)
    assert [override.id for override in policies.overrides.active()] == [override_id("low")]


async def test_what_comes_late_of_a_halted_rollout_counts_for_nothing_nor_once_it_goes_on() -> None:
    policies = Guarded(min_coverage=0.9)
    monitor, report = GuardMonitor(cast(Any, policies), None), inference_pb2.SparsityReport(coverage=0.1)
    begun = move(policies.snapshot.policies["low"].policy, Action.START, Rollout((50, 100), held_back=Tier.DENSE))
    halted = halt(begun, "a dip")

    def write(policy: Policy, revision: int, actor: str) -> None:
        policies.snapshot = Snapshot.build(revision, [replace(stored(policy, revision), actor=actor)])

    async def after(times: int, covered: bool = False) -> list[str]:
        for _ in range(times):
            for arm, score in ((HELD_BACK, 0.9), (ROLLED_OUT, 0.5)):
                monitor.outcome(outcome("exact_match", arm, score))
            if covered:
                monitor.coverage("low", Tier.AGGRESSIVE, report)
        await asyncio.sleep(0.01)
        return [override.id for override in policies.overrides.active()]

    write(begun, 1, "operator")
    assert await after(MIN_SAMPLES - 1) == []
    write(halted, 2, ACTOR)
    assert await after(2 * MIN_SAMPLES, covered=True) == []
    write(move(halted, Action.RESUME), 3, "operator")
    assert await after(MIN_SAMPLES - 1, covered=True) == []
    # Whoever moves it on by itself has looked at nothing.
    write(move(move(halted, Action.RESUME), Action.PROMOTE), 4, rollouts.ACTOR)
    assert await after(1) == [override_id("low")]


@pytest.mark.parametrize(
    "theirs",
    [
        Override("guard-low", Scope.GLOBAL, "", Tier.MODERATE, None, "everybody", "ann"),
        Override("guard-low", Scope.TENANT, "acme", Tier.DENSE, None, "one tenant", "ann"),
        Override("guard-low", Scope.DOMAIN, "other", Tier.DENSE, None, "another domain", "ann"),
        Override("guard-low", Scope.DOMAIN, "low", Tier.MODERATE, None, "until I end it", "ann"),
    ],
    ids=lambda theirs: f"{theirs.scope.name.lower()} {theirs.target}",
)
async def test_a_guard_neither_takes_the_place_of_anothers_override_nor_takes_it_for_its_cap(theirs: Override) -> None:
    """One that stands in a store since before its id was the guard's alone."""
    policies = Guarded(min_coverage=0.9)
    monitor, report = GuardMonitor(cast(Any, policies), None), inference_pb2.SparsityReport(coverage=0.1)

    async def after(count: int, tier: Tier) -> dict[str, Override]:
        for _ in range(count):
            monitor.coverage("low", tier, report)
        await asyncio.sleep(0.01)
        return {override.id: override for override in policies.overrides.active()}

    policies.overrides.put(theirs)
    assert cap_of(cast(Any, policies), "low") is None
    found = await after(MIN_SAMPLES, Tier.AGGRESSIVE)
    cap = found.pop("guard-low.2")
    assert found == {"guard-low": theirs}
    assert (cap.scope, cap.target, cap.max_tier, cap.actor) == (Scope.DOMAIN, "low", Tier.MODERATE, ACTOR)
    assert cap_of(cast(Any, policies), "low") == cap
    # The next tier takes the place of the guard's own, whose end by an operator is heeded.
    found = await after(MIN_SAMPLES, Tier.MODERATE)
    assert (found.pop("guard-low.2").max_tier, found) == (Tier.DENSE, {"guard-low": theirs})
    await after(MIN_SAMPLES - 1, Tier.AGGRESSIVE)
    policies.overrides.end("guard-low.2")
    assert await after(MIN_SAMPLES - 1, Tier.AGGRESSIVE) == {"guard-low": theirs}


def test_a_metric_without_a_dip_is_a_mistake() -> None:
    for guards, words in (
        ({"quality_metric": "exact_match"}, "set guards.max_quality_dip"),
        ({"quality_metric": "x" * 257, "max_quality_dip": 0.1}, "256 characters at most"),
        ({"quality_metric": 3, "max_quality_dip": 0.1}, "must be text"),
    ):
        with pytest.raises(InvalidRequestError, match="quality_metric") as caught:
            parse_policy(DOCUMENT | {"guards": guards})
        assert words in str(caught.value)
    named = parse_policy(DOCUMENT | {"guards": {"quality_metric": "exact_match", "max_quality_dip": 0.1}})
    assert policy_from_wire(policy_to_wire(named)) == named


def test_names_that_nobody_uses_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = windows.Metrics()
    for number in range(40):
        kept.add(f"{number}", HELD_BACK, 0.5)
    assert len(kept._metrics) == 16
    monkeypatch.setattr(windows, "_SECONDS", 0.0)
    kept.add("another", HELD_BACK, 0.5)
    assert list(kept._metrics) == ["another"]
