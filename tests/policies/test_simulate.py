from __future__ import annotations

import random
from dataclasses import replace

import pytest
from sparsity_policies.decisions.costs import (
    DENSE,
    NO_SHAPES,
    Cost,
    Density,
    ModelShape,
    Pairs,
    Shapes,
    assumed_density,
)
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.simulate import Simulation
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Reason, Scope, Signals, Tier
from support.stores.snapshots import snapshot, stored

SHAPE = ModelShape(layers=2, query_heads=4, kv_heads=2, head_dim=8)
SHAPES = Shapes({"tiny": SHAPE})
DRAFT = parse_policy(
    {
        "domain": "rag",
        "risk": "low",
        "bands": [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 500, "tier": "aggressive"}],
        "rules": [{"name": "vip", "when": "tenant == 'acme' || labels['a'] == 'b'", "tier": "dense"}],
        "rollout": {"steps": [30, 100], "held_back": "moderate"},
    }
)


def random_signals(chance: random.Random) -> Signals:
    tokens = chance.choice((1, 400, 600, 1024, 5000, chance.randrange(1, 100_000)))
    return Signals(
        min_tokens=max(tokens - chance.randrange(0, 300), 0),
        max_tokens=tokens,
        domain=chance.choice(("rag", "rag", "rag", "medical", "code", "", "astrology")),
        flags=frozenset(chance.sample(["a", "b"], chance.choice((0, 0, 0, 1)))),
        task=chance.choice(("", "qa", "search")),
        labels=chance.choice(((), (("a", "b"),), (("a", "c"),))),
        tenant=chance.choice(("", "acme", "other")),
        session=chance.choice(("", f"s{chance.randrange(1000)}")),
        max_tier=chance.choice((None, None, *Tier)),
        scanned_bytes=10,
        prompt_bytes=chance.choice((10, 10, 10, 11)),
        classifier_error=chance.choice(("", "", "", "timed out")),
        received_at=1000.0,
        policy_age=chance.choice((0.0, 0.0, 1e6)),
        request_key=f"{chance.random()}",
    )


def test_a_simulated_draft_decides_as_it_will_when_live() -> None:
    chance = random.Random(7)
    overrides = [
        Override("k", Scope.TENANT, "other", Tier.MODERATE, 2000.0),
        Override("t", Scope.TIER, "aggressive", Tier.MODERATE, 500.0),
    ]
    present = snapshot(overrides=overrides)
    others = [item.stored for item in present.policies.values() if item.policy.domain != "rag"]
    live = type(present).build(1, [*others, stored(DRAFT, present.policies["rag"].stored.revision)], overrides)
    simulation = Simulation(present, present.with_draft(DRAFT), SHAPES)
    tiers = set()
    for _ in range(10_000):
        signals = random_signals(chance)
        found = simulation.add(signals)
        assert found.before == decide(signals, present)
        assert found.after == decide(signals, live)
        tiers.add((found.before.tier, found.after.tier))
    assert len(tiers) >= 5
    assert simulation.summary().requests == 10_000


def test_costs_by_hand() -> None:
    # 3 prompt tokens make 1 + 2 + 3 pairs; 2 more attend 4 and 5.
    assert Pairs.of(3, 2) == Pairs(6, 9)
    # 4 d operations a pair and head, over two layers of four heads of 8; keys and values of two heads of 8, 2 bytes.
    assert SHAPE.cost(Pairs(6, 9), Density(1, 1)) == Cost(4 * 8 * 4 * 2 * 15, 9 * 2 * 2 * 8 * 2 * 2)
    assert SHAPE.cost(Pairs(6, 9), Density(0.5, 0)) == Cost(4 * 8 * 4 * 2 * 3, 0)


def test_the_shape_comes_from_the_models_config() -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    assert ModelShape.of(config) == ModelShape(30, 9, 3, 64)
    assert ModelShape.of({"text_config": config | {"head_dim": 128}}) == ModelShape(30, 9, 3, 128)
    assert ModelShape.of({"vocab_size": 3}) is None


def entry(tier: Tier, tokens: int, prefill: float, decode: float) -> Entry:
    return Entry(0.0, "d", Signals(tokens, tokens), "rag", 1, tier, Reason.LENGTH_BAND, served_tier=tier,
                 prefill_density=prefill, decode_density=decode)  # fmt: skip


def test_the_summary_counts_changes_and_reckons_with_densities_of_the_same_length() -> None:
    present = snapshot()
    simulation = Simulation(present, present.with_draft(replace(DRAFT, rollout=None, rules=())), SHAPES)
    simulation.observe(entry(Tier.AGGRESSIVE, 600, 0.7, 0.8))
    simulation.observe(entry(Tier.AGGRESSIVE, 900, 0.9, 0.9))
    simulation.observe(entry(Tier.AGGRESSIVE, 6000, 0.2, 0.3))
    simulation.observe(entry(Tier.DENSE, 600, 1.0, 1.0))
    for tokens in (600, 600, 2000, 6000):
        simulation.add(Signals(tokens, tokens, domain="rag"), new_tokens=10)
    simulation.add(Signals(600, 600, domain="medical"))
    summary = simulation.summary()
    assert dict(summary.changes) == {
        (Tier.DENSE, Tier.AGGRESSIVE): 2,
        (Tier.MODERATE, Tier.AGGRESSIVE): 1,
        (Tier.AGGRESSIVE, Tier.AGGRESSIVE): 1,
        (Tier.DENSE, Tier.DENSE): 1,
    }
    assert summary.before is not None
    assert summary.after is not None

    def flops(tokens: int, density: Density) -> float:
        return SHAPE.cost(Pairs.of(tokens, 10), density).flops

    # Nothing was observed of 1,024 to 2,047 tokens, and below 4,096 a sparse tier is assumed to run dense.
    assert summary.before.flops == pytest.approx(
        2 * flops(600, DENSE)
        + flops(2000, DENSE)
        + flops(6000, Density(0.2, 0.3))
        + SHAPE.cost(Pairs.of(600, 0), DENSE).flops
    )
    saved = 2 * (flops(600, DENSE) - flops(600, Density(0.8, 0.85)))
    assert summary.before.flops - summary.after.flops == pytest.approx(saved)
    measured = summary.densities[Tier.AGGRESSIVE]
    assert measured.requests == 3
    assert 0.2 < measured.prefill < 0.8
    assert summary.densities[Tier.DENSE] == DENSE
    assert (summary.high_risk_changed, summary.high_risk_sparser) == (0, 0)
    assert Simulation(present, present, NO_SHAPES).summary().before is None


def test_each_model_costs_what_its_shape_says_and_is_as_dense_as_its_own_workers_reported() -> None:
    present = snapshot()
    wide = ModelShape(layers=4, query_heads=8, kv_heads=2, head_dim=16)
    simulation = Simulation(present, present, Shapes({"tiny": SHAPE, "wide": wide, "unknown": None}))
    seen = entry(Tier.AGGRESSIVE, 5000, 0.5, 0.5)
    simulation.observe(replace(seen, signals=replace(seen.signals, model="wide")))
    for model in ("tiny", "wide", "unknown", "elsewhere"):
        simulation.add(Signals(5000, 5000, domain="rag", model=model))
    pairs, assumed = Pairs.of(5000, 0), assumed_density(Tier.AGGRESSIVE, 4096)
    costs = SHAPE.cost(pairs, assumed).flops + wide.cost(pairs, Density(0.5, 0.5)).flops
    assert simulation.summary().before == (pytest.approx(costs), 0.0)


def test_assumed_densities_depend_on_the_length() -> None:
    assert assumed_density(Tier.AGGRESSIVE, 4095) == DENSE
    assert assumed_density(Tier.AGGRESSIVE, 4096).prefill < assumed_density(Tier.MODERATE, 4096).prefill < 1


def test_high_risk_requests_that_change_are_counted() -> None:
    present = snapshot()
    risky = parse_policy({"domain": "medical", "risk": "high", "bands": [{"from_tokens": 0, "tier": "moderate"}]})
    simulation = Simulation(present, present.with_draft(risky), SHAPES)
    for tokens in (10, 20):
        simulation.add(Signals(tokens, tokens, domain="medical"))
    simulation.add(Signals(10, 10, domain="medical", flags=frozenset({"f"})))
    assert (simulation.summary().high_risk_changed, simulation.summary().high_risk_sparser) == (2, 2)
