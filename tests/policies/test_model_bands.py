"""A model's own length bands stand in the place of those that policies took from the band set, and of no others."""

from __future__ import annotations

import random
from dataclasses import replace

from sparsity_policies.decisions.decide import decide, hangs_on_length
from sparsity_policies.decisions.model_bands import ModelBands
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_bands, parse_policy
from sparsity_policies.documents.shipped import bands_of, shipped_policies
from sparsity_policies.model import Override, Policy, Risk, Scope, Signals, Tier
from support.stores.snapshots import compiled, stored

STANDARD = bands_of("standard")
OWN = parse_bands(Risk.LOW, [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 500, "tier": "aggressive"}])
BANDS = ModelBands(STANDARD, {"small": {Risk.LOW: OWN}})
KEPT = parse_policy({"domain": "kept", "risk": "low", "bands": [{"from_tokens": 0, "tier": "dense"}]})


def built(*more: Policy, bands: ModelBands = BANDS, overrides: tuple[Override, ...] = ()) -> Snapshot:
    policies = {policy.domain: policy for policy in (*shipped_policies("standard"), *more)}
    documents = [stored(policy) for policy in policies.values()]
    return Snapshot.build(1, documents, overrides, compiled=compiled, model_bands=bands)


def tier(snapshot: Snapshot, model: str, domain: str, tokens: int = 1000, **signals: object) -> Tier:
    return decide(Signals(tokens, tokens, domain=domain, model=model, **signals), snapshot).tier  # type: ignore[arg-type]


def test_only_its_own_requests_of_that_risk_have_them() -> None:
    snapshot = built(KEPT)
    assert tier(snapshot, "small", "rag") is Tier.AGGRESSIVE
    assert tier(snapshot, "small", "rag", 499) is Tier.DENSE
    for model in ("", "other"):
        assert tier(snapshot, model, "rag") is Tier.DENSE
    for domain in ("kept", "medical", "nowhere"):
        assert tier(snapshot, "small", domain, 100_000) is Tier.DENSE


def test_a_policy_that_was_given_bands_keeps_them_for_every_model() -> None:
    rag = next(policy for policy in shipped_policies("standard") if policy.domain == "rag")
    assert rag.bands == STANDARD[Risk.LOW]
    denser = replace(rag, bands=KEPT.bands)
    assert tier(built(denser), "small", "rag", 100_000) is Tier.DENSE
    # A draft does as it will when it is live.
    assert tier(built().with_draft(denser, compiled), "small", "rag", 100_000) is Tier.DENSE
    assert tier(built(denser).with_draft(rag, compiled), "small", "rag") is Tier.AGGRESSIVE


def test_all_that_makes_denser_does() -> None:
    switch = Override("k", Scope.GLOBAL, max_tier=Tier.DENSE)
    assert tier(built(overrides=(switch,)), "small", "rag") is Tier.DENSE
    assert tier(built(), "small", "rag", flags=frozenset({"f"})) is Tier.DENSE
    assert tier(built(), "small", "rag", session_tier=Tier.MODERATE) is Tier.MODERATE
    assert tier(built(), "small", "rag", max_tier=Tier.DENSE) is Tier.DENSE
    # Detected in the place of a declared one of that risk, the riskier policy decides.
    assert tier(built(), "small", "legal", declared="rag", detected=True) is Tier.DENSE


def test_they_decide_as_if_those_policies_said_so_whatever_the_request() -> None:
    chance = random.Random(3)
    elevated = parse_bands(
        Risk.ELEVATED, [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 900, "tier": "moderate"}]
    )
    own = {Risk.LOW: OWN, Risk.ELEVATED: elevated}
    switch = (
        Override("k", Scope.TENANT, "held", Tier.MODERATE),
        Override("t", Scope.TIER, "aggressive", Tier.DENSE, 5.0),
    )
    ours = built(KEPT, bands=ModelBands(STANDARD, {"small": own}), overrides=switch)
    policies = [item.policy for item in ours.policies.values()]
    written = [replace(p, bands=own.get(p.risk, p.bands)) if p.bands == STANDARD[p.risk] else p for p in policies]
    theirs = Snapshot.build(1, [stored(policy) for policy in written], switch, compiled=compiled)
    tiers = set()
    for _ in range(5000):
        low = chance.choice((1, 300, 600, 1000, 9000, 40_000))
        signals = Signals(
            low,
            low + chance.choice((0, 0, 300, 5000)),
            domain=chance.choice(["", "nowhere", *sorted(ours.policies)]),
            declared=chance.choice(["", "", "rag", "code", "kept"]),
            detected=chance.random() < 0.3,
            confidence=chance.choice((1.0, 0.3)),
            flags=frozenset({"f"} if chance.random() < 0.1 else ()),
            task=chance.choice(("", "qa")),
            tenant=chance.choice(("", "held")),
            session_tier=chance.choice((None, None, Tier.MODERATE)),
            max_tier=chance.choice((None, None, Tier.MODERATE)),
            received_at=chance.choice((0.0, 9.0)),
            model="small",
        )
        found, expected = decide(signals, ours), decide(signals, theirs)
        for part in ("tier", "reason", "matched_rule", "policy", "fallback", "lasting", "dense_reasoning"):
            assert getattr(found, part) == getattr(expected, part)
        assert hangs_on_length(signals, ours) == hangs_on_length(signals, theirs)
        tiers.add(found.tier)
    assert tiers == set(Tier)


def test_the_decision_says_so_and_hangs_on_their_lengths() -> None:
    snapshot = built()
    decision = decide(Signals(1000, 1000, domain="rag", model="small"), snapshot)
    assert decision.explanation == "1000 prompt tokens lie in the band from 500 of model small"
    assert (decision.matched_rule, decision.lasting) == ("bands[1]", Tier.AGGRESSIVE)
    between = Signals(400, 600, domain="rag", model="small")
    assert hangs_on_length(between, snapshot)
    assert not hangs_on_length(replace(between, model=""), snapshot)
    assert hangs_on_length(replace(between, domain="medical", declared="rag", detected=True), snapshot)


def test_routers_that_decide_otherwise_tell_another_hash() -> None:
    other = ModelBands(STANDARD, {"small": {Risk.LOW: STANDARD[Risk.LOW]}})
    hashes = {built(bands=bands).content_hash for bands in (ModelBands(), BANDS, other)}
    assert len(hashes) == 3
    assert built().content_hash == built().content_hash
    assert built(bands=ModelBands(STANDARD)).content_hash == built(bands=ModelBands()).content_hash
