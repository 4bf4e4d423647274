from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_policies.decisions.decide import decide
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Reason, Scope, Signals, Tier
from support.stores.snapshots import snapshot

SNAPSHOT = snapshot()
RAG = Signals(6000, 6000, domain="rag", received_at=1000.0)


@pytest.mark.parametrize(
    ("domain", "tokens", "tier", "reason"),
    [
        ("rag", 1023, Tier.DENSE, Reason.LENGTH_BAND),
        ("rag", 1024, Tier.MODERATE, Reason.LENGTH_BAND),
        ("rag", 4095, Tier.MODERATE, Reason.LENGTH_BAND),
        ("rag", 4096, Tier.AGGRESSIVE, Reason.LENGTH_BAND),
        ("medical", 8000, Tier.DENSE, Reason.LENGTH_BAND),
        ("code", 8000, Tier.MODERATE, Reason.LENGTH_BAND),
        ("default", 8000, Tier.DENSE, Reason.LENGTH_BAND),
        ("astrology", 8000, Tier.DENSE, Reason.UNKNOWN_DOMAIN),
        ("", 8000, Tier.DENSE, Reason.UNKNOWN_DOMAIN),
    ],
)
def test_bands_of_the_shipped_policies(domain: str, tokens: int, tier: Tier, reason: Reason) -> None:
    decision = decide(Signals(tokens, tokens, domain=domain), SNAPSHOT)
    assert (decision.tier, decision.reason) == (tier, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flags": frozenset({"abuse"})}, Reason.FLAGGED),
        ({"classifier_error": "timed out"}, Reason.CLASSIFIER_FAILED),
        ({"scanned_bytes": 10, "prompt_bytes": 11}, Reason.SCAN_TRUNCATED),
        ({"policy_age": 301.0}, Reason.STALE_POLICY),
        ({"domain": "nowhere"}, Reason.UNKNOWN_DOMAIN),
        ({"max_tier": Tier.DENSE}, Reason.CALLER_REQUESTED),
    ],
)
def test_every_doubt_goes_dense_and_says_which(change: dict[str, object], reason: Reason) -> None:
    assert decide(RAG, SNAPSHOT).tier is Tier.AGGRESSIVE
    decision = decide(replace(RAG, **change), SNAPSHOT)  # type: ignore[arg-type]
    assert (decision.tier, decision.reason) == (Tier.DENSE, reason)
    assert decision.explanation


def test_reasoning_decodes_densely_where_policy_or_caller_says_so() -> None:
    assert not decide(RAG, SNAPSHOT).dense_reasoning
    assert decide(replace(RAG, dense_reasoning=True), SNAPSHOT).dense_reasoning
    assert decide(replace(RAG, domain="reasoning"), SNAPSHOT).dense_reasoning
    # Neither of two domains takes the other's word back, nor does a caller.
    assert decide(replace(RAG, domain="code", declared="reasoning"), SNAPSHOT).dense_reasoning
    assert decide(replace(RAG, domain="reasoning", declared="rag", dense_reasoning=False), SNAPSHOT).dense_reasoning
    assert not decide(replace(RAG, domain="code", declared="rag"), SNAPSHOT).dense_reasoning


def test_rules_come_before_bands_and_the_first_match_wins() -> None:
    search = decide(Signals(5000, 5000, domain="code", task="search"), SNAPSHOT)
    assert (search.tier, search.reason, search.matched_rule) == (
        Tier.AGGRESSIVE,
        Reason.RULE_MATCH,
        "rules[long-repository-search]",
    )
    escalated = Signals(6000, 6000, domain="support-chat", labels=(("priority", "escalated"),))
    assert decide(escalated, SNAPSHOT).tier is Tier.DENSE
    assert decide(replace(escalated, labels=()), SNAPSHOT).tier is Tier.AGGRESSIVE


def test_a_dense_rule_that_cannot_be_evaluated_goes_dense() -> None:
    document = {
        "domain": "x",
        "risk": "low",
        "bands": [{"from_tokens": 0, "tier": "aggressive"}],
        "rules": [{"name": "r", "when": "labels['a'] == 'b'", "tier": "dense"}],
    }
    decision = decide(Signals(1, 1, domain="x"), snapshot([parse_policy(document)]))
    assert (decision.tier, decision.reason) == (Tier.DENSE, Reason.CLASSIFIER_FAILED)


@pytest.mark.parametrize("severity", ["high", None], ids=["of another type", "missing"])
@pytest.mark.parametrize("later", [[], [{"name": "later", "when": "task == 'qa'", "tier": "aggressive"}]])
def test_a_rule_that_cannot_be_evaluated_caps_what_follows_at_its_tier(
    severity: str | None, later: list[dict[str, str]]
) -> None:
    rules = [{"name": "severe", "when": "int(labels['severity']) >= 3", "tier": "moderate"}, *later]
    document = {"domain": "x", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}], "rules": rules}
    labels = (("severity", severity),) if severity else ()
    decision = decide(Signals(1, 1, domain="x", task="qa", labels=labels), snapshot([parse_policy(document)]))
    assert (decision.tier, decision.reason) == (Tier.MODERATE, Reason.CLASSIFIER_FAILED)
    assert decision.matched_rule == "rules[severe]"
    evaluated = Signals(1, 1, domain="x", task="qa", labels=(("severity", "1"),))
    assert decide(evaluated, snapshot([parse_policy(document)])).tier is Tier.AGGRESSIVE


def test_the_densest_of_several_rules_that_cannot_be_evaluated_caps() -> None:
    rules = [{"name": tier, "when": f"labels['{tier}'] == 'b'", "tier": tier} for tier in ("aggressive", "moderate")]
    rules.append({"name": "plain", "when": "task == ''", "tier": "dense"})
    document = {"domain": "x", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}], "rules": rules}
    assert decide(Signals(1, 1, domain="x"), snapshot([parse_policy(document)])).matched_rule == "rules[plain]"
    document["rules"] = rules[:2]
    assert decide(Signals(1, 1, domain="x"), snapshot([parse_policy(document)])).tier is Tier.MODERATE


def test_an_interval_over_a_band_edge_takes_the_denser_band() -> None:
    assert decide(Signals(4000, 4200, domain="rag"), SNAPSHOT).tier is Tier.MODERATE
    assert decide(Signals(900, 9000, domain="rag"), SNAPSHOT).tier is Tier.DENSE


def test_bands_of_a_task_replace_those_without_one() -> None:
    bands = [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 0, "tier": "moderate", "task": "qa"}]
    one = snapshot([parse_policy({"domain": "x", "risk": "low", "bands": bands})])
    assert decide(Signals(5, 5, domain="x", task="qa"), one).tier is Tier.MODERATE
    assert decide(Signals(5, 5, domain="x", task="other"), one).tier is Tier.DENSE


@pytest.mark.parametrize(
    ("override", "tier"),
    [
        (Override("k", Scope.GLOBAL), Tier.DENSE),
        (Override("k", Scope.GLOBAL, max_tier=Tier.MODERATE), Tier.MODERATE),
        (Override("k", Scope.DOMAIN, "rag"), Tier.DENSE),
        (Override("k", Scope.DOMAIN, "code"), Tier.AGGRESSIVE),
        (Override("k", Scope.TENANT, "acme"), Tier.DENSE),
        (Override("k", Scope.GLOBAL, expire_time=999.0), Tier.AGGRESSIVE),
        (Override("k", Scope.GLOBAL, expire_time=1001.0), Tier.DENSE),
    ],
)
def test_overrides_cap_what_they_name_until_they_expire(override: Override, tier: Tier) -> None:
    decision = decide(replace(RAG, tenant="acme"), snapshot(overrides=[override]))
    assert decision.tier is tier
    if tier is not Tier.AGGRESSIVE:
        assert decision.reason is Reason.KILL_SWITCH


signals = st.builds(
    Signals,
    min_tokens=st.integers(0, 9000),
    max_tokens=st.integers(9000, 20000),
    domain=st.sampled_from(["", "rag", "medical", "legal", "code", "support-chat", "nowhere"]),
    flags=st.frozensets(st.sampled_from(["a", "b"]), max_size=1),
    task=st.sampled_from(["", "search", "proof"]),
    tenant=st.sampled_from(["", "acme"]),
    max_tier=st.sampled_from([None, *Tier]),
    classifier_error=st.sampled_from(["", "late"]),
    policy_age=st.sampled_from([0.0, 1e6]),
)


@settings(max_examples=500)
@given(signals=signals, cap=st.sampled_from(list(Tier)))
def test_invariants(signals: Signals, cap: Tier) -> None:
    """No doubt is served sparse, callers only get more attention, overrides only densify, fallback only densifies."""
    decision = decide(signals, SNAPSHOT)
    doubt = signals.flags or signals.classifier_error or signals.policy_age > 300
    if doubt or signals.domain in ("", "nowhere", "medical", "legal"):
        assert decision.tier is Tier.DENSE
    assert decision.tier <= decide(replace(signals, max_tier=None), SNAPSHOT).tier
    if signals.max_tier is not None:
        assert decision.tier <= signals.max_tier
    capped = decide(signals, snapshot_with(cap))
    assert capped.tier == min(decision.tier, cap)
    assert all(other < decision.tier for other in decision.fallback)
    assert decide(signals, SNAPSHOT) == decision


def snapshot_with(cap: Tier):
    return SNAPSHOT.with_overrides([Override("k", Scope.GLOBAL, max_tier=cap)])
