"""The simulated prefix caches: what they hold, and what a load through the shipped policies finds in them."""

from __future__ import annotations

import math

import pytest
from sparsity_bench.tiers.prefixes import PAGE, Cache, simulate
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import StoredPolicy, Tier


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return Snapshot.build(1, [StoredPolicy(each, "", 1, 0.0, "", "") for each in shipped_policies("standard")])


def test_the_ends_of_what_was_least_recently_used_are_dropped() -> None:
    cache = Cache(10 * PAGE)
    cache.keep(0, Tier.DENSE, 1, 6)
    cache.keep(0, Tier.DENSE, 2, 3)
    cache.keep(0, Tier.DENSE, 1, 4)
    cache.keep(0, Tier.MODERATE, 1, 3)
    assert [cache.pages(0, Tier.DENSE, text) for text in (1, 2)] == [6, 1]
    cache.keep(1, Tier.DENSE, 1, 5)
    # The second text is gone, and then the end of the first.
    assert [cache.pages(0, Tier.DENSE, text) for text in (1, 2)] == [2, 0]
    assert (cache.pages(0, Tier.MODERATE, 1), cache.pages(1, Tier.DENSE, 1), cache.pages(2, Tier.DENSE, 1)) == (3, 5, 0)


def test_what_sessions_may_do_decides_what_a_denser_tier_saves(snapshot: Snapshot) -> None:
    kept, freely = (simulate(snapshot, 800, math.inf, kept=kept) for kept in (True, False))
    assert sum(kept.tiers.values()) == sum(freely.tiers.values()) == 800
    assert kept.all.tokens == freely.all.tokens > 0
    # Chats begin densely, and are not held there; a search within an agent's session holds its later steps.
    assert kept.tiers[Tier.DENSE] == freely.tiers[Tier.DENSE] < 400
    assert kept.tiers[Tier.AGGRESSIVE] < freely.tiers[Tier.AGGRESSIVE]
    assert 0 < kept.all.denser < freely.all.denser
    for found in (kept, freely):
        assert found.all.own + found.all.denser <= found.all.tokens
        assert all(count.own + count.denser <= count.tokens for count in found.kinds.values())
        assert "medical chats" not in found.kinds


def test_a_cache_without_room_holds_less(snapshot: Snapshot) -> None:
    small, large = (simulate(snapshot, 1000, tokens, kept=False) for tokens in (50_000, math.inf))
    assert small.all.own < large.all.own
