from __future__ import annotations

import pytest
from sparsity_policies.documents.document import parse_policy, to_document
from sparsity_policies.documents.shipped import band_sets, shipped_policies
from sparsity_policies.documents.yamlfile import load_yaml
from sparsity_policies.model import Tier
from sparsity_policies.wire import policy_from_wire, policy_to_wire
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError

GOOD = {"domain": "x", "risk": "low", "bands": [{"from_tokens": 0, "tier": "dense"}]}
BAND = {"from_tokens": 0, "tier": "dense"}
# Of more digits than Python writes out; in YAML hexadecimal ones are read all the same.
LONG = 16**9999
AGGRESSIVE = [{"from_tokens": 0, "tier": "aggressive"}]


def violations(document: object) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_policy(document)
    return dict(caught.value.violations)


@pytest.mark.parametrize("band_set", ["standard", "small-context"])
def test_shipped_policies_are_sound_and_survive_both_schemas(band_set: str) -> None:
    policies = shipped_policies(band_set)
    names = {policy.domain for policy in policies}
    assert names == {
        *("medical", "legal", "compliance", "safety", "reasoning"),
        *("support-chat", "rag", "summarization", "code", "default"),
    }
    for policy in policies:
        assert parse_policy(to_document(policy)) == policy
        assert policy_from_wire(policy_to_wire(policy)) == policy
        if policy.risk.name == "HIGH":
            assert policy.guards.max_tier is Tier.DENSE
            assert all(band.tier is Tier.DENSE for band in policy.bands)


def test_band_sets() -> None:
    assert band_sets() == ["small-context", "standard"]
    rag = next(policy for policy in shipped_policies("standard") if policy.domain == "rag")
    assert [(band.from_tokens, band.tier.word) for band in rag.bands] == [
        (0, "dense"),
        (8192, "moderate"),
        (32768, "aggressive"),
    ]
    with pytest.raises(ConfigurationError, match="band set: must be one of"):
        shipped_policies("tiny")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"domain": "No Good"}, "domain", "lower-case words"),
        ({"risk": "huge"}, "risk", "one of low, elevated, high"),
        ({"bands": [{"from_tokens": 0, "tier": "sparse"}]}, "bands[0].tier", "one of dense, moderate, aggressive"),
        ({"bands": [{"tier": "dense"}]}, "bands[0].from_tokens", "is missing"),
        ({"bands": [{"from_tokens": -1, "tier": "dense"}]}, "bands[0].from_tokens", "whole number from 0"),
        ({"bands": [BAND, {"from_tokens": 2**32, "tier": "dense"}]}, "bands[1].from_tokens", "4294967295 at most"),
        ({"bands": [BAND, {"from_tokens": LONG, "tier": "dense"}]}, "bands[1].from_tokens", "4294967295 at most"),
        ({"rollout": {"steps": [2**32]}}, "rollout.steps[0]", "4294967295 at most"),
        ({"rollout": {"steps": [5, 100], "step": 2**32}}, "rollout.step", "4294967295 at most"),
        ({"rollout": {"steps": [5, 100], "pauses": [2**32]}}, "rollout.pauses[0]", "4294967295 at most"),
        ({"shadow": {"tokens_per_minute": 2**64}}, "shadow.tokens_per_minute", f"{2**64 - 1} at most"),
        ({"guards": {"min_coverage": LONG}}, "guards.min_coverage", "from 0 to 1"),
        ({"risk": LONG}, "risk", "one of low"),
        ({"description": [[[LONG]]]}, "description", "must be text"),
        ({LONG: 1}, "a number of many digits", "is not a field"),
        ({"bands": [{"from_tokens": 5, "tier": "dense"}]}, "bands[0].from_tokens", "let the first band begin at 0"),
        ({"bands": []}, "bands", "need one band"),
        ({"bands": GOOD["bands"] * 2}, "bands[1].from_tokens", "overlaps bands[0]"),
        ({"colour": 1}, "colour", "is not a field"),
        ({"rules": [{"name": "a", "when": "tokens >", "tier": "dense"}]}, "rules[0].when", "not valid CEL"),
        ({"rules": [{"name": "a", "when": "tokens", "tier": "dense"}]}, "rules[0].when", "not bool"),
        ({"rules": [{"name": "a", "when": "size > 3", "tier": "dense"}]}, "rules[0].when", "reads unknown size"),
        ({"detection": {"patterns": ["(a"]}}, "detection.patterns[0]", "not a usable regular expression"),
        ({"detection": {"literals": ["a"]}}, "detection.literals[0]", "at least 3 characters"),
        ({"detection": {"literals": ["a\u200b\u200b"]}}, "detection.literals[0]", "at least 3 characters"),
        ({"risk": "high", "bands": AGGRESSIVE}, "bands[0].tier", "may not reach aggressive"),
        ({"guards": {"min_coverage": 2}}, "guards.min_coverage", "from 0 to 1"),
        ({"rollout": {"steps": [50, 10]}}, "rollout.steps", "ascending percentages"),
        ({"fallback": ["dense", "moderate"]}, "fallback[1]", "must be denser than dense"),
        ({"labels": {"a": 1}}, "labels", "text to text"),
        ({"labels": {"a": "\ud800"}}, "labels", "text to text"),
        ({"description": "half \ud800"}, "description", "half a surrogate pair"),
        ({"detection": {"literals": ["abc\udfffdef"]}}, "detection.literals[0]", "half a surrogate pair"),
        ({"\ud800": 1}, "\\ud800", "is not a field"),
    ],
)
def test_mistakes_name_the_field_and_the_remedy(change: dict[str, object], field: str, words: str) -> None:
    assert words in violations(GOOD | change)[field]


def test_all_mistakes_come_at_once() -> None:
    found = violations({"domain": "A", "risk": "?", "bands": [{"from_tokens": "x", "tier": "y"}], "zz": 1})
    assert set(found) == {"domain", "risk", "bands[0].from_tokens", "bands[0].tier", "zz"}
    assert violations(None) == violations([]) | {"policy": "must be a mapping, not None"}


def test_yaml_mistakes_carry_their_line() -> None:
    text = "domain: x\nrisk: low\nbands:\n  - from_tokens: 0\n    tier: sparse\n"
    with pytest.raises(InvalidRequestError, match=r"p\.yaml:5: bands\[0\]\.tier"):
        load_yaml(text, "p.yaml")
    with pytest.raises(InvalidRequestError, match=r"p\.yaml:2: is not valid YAML"):
        load_yaml("domain: x\nrisk: [", "p.yaml")


def test_a_policy_message_is_checked_like_a_document() -> None:
    message = policy_to_wire(parse_policy(GOOD))
    message.bands[0].tier = 0
    with pytest.raises(InvalidRequestError, match=r"bands\[0\]\.tier"):
        policy_from_wire(message)


def test_every_number_that_a_document_takes_a_message_takes() -> None:
    most = 2**32 - 1
    policy = parse_policy(
        {
            "domain": "x",
            "risk": "low",
            "bands": [BAND, {"from_tokens": most, "tier": "moderate"}],
            "guards": {"min_coverage": 1, "max_quality_dip": 1},
            "rollout": {"steps": [1, 100], "step": 1, "pauses": [most]},
            "shadow": {"percent": 100, "tokens_per_minute": 2**64 - 1},
        }
    )
    assert policy_from_wire(policy_to_wire(policy)) == policy


@pytest.mark.parametrize("value", ["0x" + "f" * 9999, "!!int 9a", '!!int ""', "!!bool maybe", "!!timestamp x"])
def test_odd_values_of_yaml_are_refused_with_a_place(value: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"p\.yaml"):
        load_yaml(f"domain: x\nrisk: low\nbands: [{{from_tokens: {value}, tier: dense}}]\n", "p.yaml")
