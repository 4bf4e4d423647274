"""The quality guard, whatever callers name their metrics."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from sparsity_policies.decisions.journal import Outcome
from sparsity_policies.decisions.rollout import HELD_BACK, ROLLED_OUT
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Tier
from sparsity_router.following import windows
from sparsity_router.following.guards import GuardMonitor, override_id
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.windows import MIN_SAMPLES
from support.rig import Policies
from support.snapshots import snapshot

POLICY = parse_policy(
    {
        "domain": "low",
        "risk": "low",
        "bands": [{"from_tokens": 0, "tier": "aggressive"}],
        "guards": {"max_quality_dip": 0.1},
    }
)


class Guarded(Policies):
    """A snapshot, and overrides beside it."""

    def __init__(self) -> None:
        super().__init__(snapshot([POLICY]))
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


def test_names_that_nobody_uses_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = windows.Metrics()
    for number in range(40):
        kept.add(f"{number}", HELD_BACK, 0.5)
    assert len(kept._metrics) == 16
    monkeypatch.setattr(windows, "_SECONDS", 0.0)
    kept.add("another", HELD_BACK, 0.5)
    assert list(kept._metrics) == ["another"]
