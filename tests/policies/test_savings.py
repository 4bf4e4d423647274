from __future__ import annotations

from dataclasses import replace

import pytest
from sparsity_policies.decisions.costs import NO_SHAPES, ModelShape, Shapes
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.savings import Savings
from sparsity_policies.model import Reason, Signals, Tier

SHAPES = Shapes({"tiny": ModelShape(layers=1, query_heads=2, kv_heads=1, head_dim=4), "unknown": None})


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
    savings = Savings(SHAPES)
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


def test_what_names_no_model_is_the_first_ones_and_of_one_without_a_shape_there_is_no_cost() -> None:
    savings = Savings(SHAPES)
    for model in ("", "tiny", "unknown", "elsewhere"):
        one = entry("rag", 3, Tier.DENSE, 1.0)
        savings.add(replace(one, signals=replace(one.signals, model=model)))
    assert savings.domains["rag"].requests == 4
    assert savings.domains["rag"].dense == (2 * 32 * 6, 0.0)


def test_without_a_shape_there_is_no_cost() -> None:
    savings = Savings(NO_SHAPES)
    savings.add(entry("rag", 3, Tier.AGGRESSIVE, 0.5))
    assert savings.domains["rag"].dense == (0.0, 0.0)
