from __future__ import annotations

import pytest
from sparsity_policies.decisions.costs import ModelShape
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.savings import Savings
from sparsity_policies.model import Reason, Signals, Tier

SHAPE = ModelShape(layers=1, query_heads=2, kv_heads=1, head_dim=4)


def entry(policy: str, tokens: int, served: Tier | None, density: float = 0.0, new: int = 0) -> Entry:
    return Entry(
        time=1.0,
        decision_id="d",
        signals=Signals(tokens, tokens, policy),
        policy=policy,
        policy_revision=1,
        policy_tier=Tier.AGGRESSIVE,
        reason=Reason.LENGTH_BAND,
        served_tier=served,
        prefill_density=density,
        decode_density=density,
        coverage=0.8 if density else 0.0,
        new_tokens=new,
    )


def test_what_was_reported_is_reckoned_and_the_rest_saved_nothing() -> None:
    savings = Savings(SHAPE)
    savings.add(entry("rag", 3, Tier.AGGRESSIVE, 0.5, new=2))
    savings.add(entry("rag", 3, Tier.DENSE, 1.0))
    savings.add(entry("rag", 3, Tier.AGGRESSIVE))
    savings.add(entry("rag", 3, None))
    savings.add(entry("medical", 4, Tier.DENSE, 1.0))
    rag = savings.domains["rag"]
    assert (rag.requests, rag.prompt_tokens, rag.new_tokens, rag.unreported) == (4, 12, 2, 2)
    assert rag.tiers == {Tier.AGGRESSIVE: 2, Tier.DENSE: 1}
    # 3 prompt tokens have 6 causal pairs, 2 new ones 2 * 3 + 3 more; 4 * 2 * 4 operations and 2 * 4 * 2 bytes each.
    assert rag.dense == (32 * (4 * 6 + 9), 16 * 9)
    assert rag.took == (32 * (4 * 6 + 9 - 7.5), 16 * 4.5)
    assert rag.coverage == pytest.approx(0.8)
    medical = savings.domains["medical"]
    assert medical.took == medical.dense
    assert medical.coverage is None


def test_without_a_shape_there_is_no_cost() -> None:
    savings = Savings(None)
    savings.add(entry("rag", 3, Tier.AGGRESSIVE, 0.5))
    assert savings.domains["rag"].dense == (0.0, 0.0)
