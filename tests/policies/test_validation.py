"""Mistakes that take more than the shape of a document to find."""

from __future__ import annotations

from typing import Any

import pytest
from sparsity_policies.documents.document import MAX_BYTES, encode, parse_policy
from sparsity_policies.documents.validate import check_exemplars
from sparsity_policies.documents.yamlfile import dump_yaml, load_yaml
from sparsity_policies.matching.conditions import Condition, operands, split
from sparsity_rpc.errors import InvalidRequestError

BANDS = [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 100, "tier": "aggressive"}]


def document(**fields: Any) -> dict[str, Any]:
    return {"domain": "x", "risk": "low", "bands": BANDS} | fields


def rules(*conditions: str) -> dict[str, Any]:
    return document(rules=[{"name": f"r{n}", "when": when, "tier": "moderate"} for n, when in enumerate(conditions)])


def violations(found: object) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_policy(found)
    return dict(caught.value.violations)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("task > 3", "No such overload"),
        ("tokens > 5 && task > 3", "No such overload"),
        ("tokens < 5 || (task == 'a' && tenant > 4)", "`tenant > 4`: No such overload"),
        ("!tokens", "No such overload"),
        ("'a' in tokens", "No such overload"),
        ("task + 3 == 4", "string + int"),
        ("nosuch(tokens)", "Undefined variable or function"),
        ("labels", "not bool"),
    ],
)
def test_type_errors_show_wherever_they_hide(condition: str, words: str) -> None:
    assert words in violations(rules(condition))["rules[0].when"]


@pytest.mark.parametrize(
    "condition",
    [
        "labels['a'] == 'b'",
        "flags[0] == 'x'",
        "flags.exists(f, f.startsWith('a')) && tokens > 2",
        "has(labels.x) && labels.x == 'b'",
        "task == 'a && b' || tenant == \"c || d\"",
        "(tokens > 5 && (task == 'a' || task == 'b')) && tenant != ''",
    ],
)
def test_what_can_come_right_at_run_time_is_no_mistake(condition: str) -> None:
    assert parse_policy(rules(condition)).rules[0].when == condition


def test_operands_are_split_outside_of_strings_and_brackets() -> None:
    assert split("a && (b || c) && 'x && y'", "&&") == ["a", "b || c", "'x && y'"]
    assert operands("a || (b && ('c' == d))") == ["a", "b", "'c' == d"]
    assert operands("f(a && b)") == []
    assert split(r"'it\'s && so' && b", "&&") == [r"'it\'s && so'", "b"]


@pytest.mark.parametrize(
    ("conditions", "field", "words"),
    [
        (["tokens >= 100", "tokens > 200"], "rules[1].when", "rule 'r0' before it takes every such request"),
        (["tokens >= 100", "tokens >= 100 && task == 'a'"], "rules[1].when", "never reached"),
        (["task == 'a'", "task == 'b'", "task  ==  'a' && tokens < 5"], "rules[2].when", "rule 'r0'"),
        (["tokens > 5 || task == 'a'", "task == 'a' && tenant == 't'"], "rules[1].when", "never reached"),
        (["tokens > 10 && tokens < 5"], "rules[0].when", "can never hold"),
        (["1 > 2"], "rules[0].when", "can never hold"),
        (["true", "task == 'a'"], "rules[1].when", "never reached"),
        (["task == 'a'", "2 > 1"], "rules[1].when", "no band is ever reached"),
    ],
)
def test_what_no_request_reaches_is_told(conditions: list[str], field: str, words: str) -> None:
    # A condition is a disjunction only at its top: `a || b` before `a` takes it, since either side would.
    found = violations(rules(*conditions))
    assert words in found[field], found


@pytest.mark.parametrize(
    "conditions",
    [
        ["tokens > 200", "tokens >= 100"],
        ["task == 'a' && tokens > 5", "task == 'a'"],
        ["task == 'a' && tokens < 50", "task == 'a' && tokens > 20"],
        ["task == 'b'", "task == 'a' || task == 'b'"],
        ["tokens >= 0"],
    ],
)
def test_reachable_rules_are_left_alone(conditions: list[str]) -> None:
    parse_policy(rules(*conditions))


def test_constant_conditions_are_known() -> None:
    assert [Condition(text).constant for text in ("true", "1 > 2", "tokens > 1")] == [True, False, None]


def test_rollouts_at_odds_with_their_policy() -> None:
    def found(**rollout: Any) -> dict[str, str]:
        return violations(document(rollout={"steps": [5, 100]} | rollout))

    assert "from 1, the last of them 100" in found(steps=[0, 100])["rollout.steps"]
    assert "fewer entries than steps" in found(pauses=[1, 2])["rollout.pauses"]
    assert "denser than aggressive" in found(held_back="aggressive")["rollout.held_back"]
    assert "below 2" in found(step=2)["rollout.step"]


def test_exemplars_that_contradict() -> None:
    mine = parse_policy(document(detection={"exemplars": ["My chest hurts", "What is  a tort?"]}))
    other = parse_policy(document(domain="legal", detection={"exemplars": ["what is a TORT?"]}))
    assert [tuple(v) for v in check_exemplars(mine, [mine, other])] == [
        ("detection.exemplars[1]", "is an exemplar of legal too: remove it from one of them")
    ]
    assert "repeats" in violations(document(detection={"exemplars": ["a", "A "]}))["detection.exemplars[1]"]


def test_yaml_keys_that_stand_twice() -> None:
    text = "domain: x\nrisk: low\nbands: [{from_tokens: 0, tier: dense, tier: moderate}]\nrisk: high\n"
    with pytest.raises(InvalidRequestError) as caught:
        load_yaml(text, "p.yaml")
    assert {v.field for v in caught.value.violations} == {"p.yaml:4: risk", "p.yaml:3: bands[0].tier"}


@pytest.mark.parametrize("text", ["[" * 5000, "a: 2020-06-31", "&a [*a]", "!!python/object:os.system {}", ""])
def test_hostile_yaml_is_refused_with_a_place(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"p\.yaml"):
        load_yaml(text, "p.yaml")


def test_a_policy_of_a_megabyte_is_taken_and_a_larger_one_refused() -> None:
    exemplars = [f"exemplar number {number} " + "x" * 80 for number in range(10_000)]
    policy = parse_policy(document(detection={"exemplars": exemplars}))
    assert len(encode(policy)) > 1_000_000
    assert load_yaml(dump_yaml(policy), "p.yaml") == policy
    huge = parse_policy(document(description="x" * MAX_BYTES))
    with pytest.raises(InvalidRequestError, match="the store takes"):
        encode(huge)


def test_mistakes_of_shape_hide_none_of_rules_and_patterns() -> None:
    found = violations(
        document(
            owner=7,
            rules=[
                {"name": "a", "when": "task ==", "tier": "moderate"},
                {"name": "b", "when": 3, "tier": "moderate"},
                {"name": "c", "when": "task == 'x'", "tier": "moderate"},
            ],
            detection={"patterns": ["(", "fine"]},
        )
    )
    assert set(found) == {"owner", "rules[0].when", "rules[1].when", "detection.patterns[0]"}
