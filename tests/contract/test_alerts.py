from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
_METRIC = re.compile(r"\b((?:sparsity|gen_ai)_[a-z_]+)\b(?!\s*[=!]|\))")


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def family(name: str) -> str:
    """The metric of a sample: docs/metrics.md names those."""
    return re.sub(r"_(total|bucket|count|sum)$", "", name)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text()
    asked = {family(name) for rule in rules() for name in _METRIC.findall(rule["expr"])}
    assert len(asked) > 5
    assert not {name for name in asked if f"`{name}`" not in documented}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    named = {rule["annotations"]["runbook"] for rule in rules()}
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "runbooks").glob("*.md")}


def test_every_alert_is_played() -> None:
    played = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    names = {case["alertname"] for test in played for case in test["alert_rule_test"]}
    assert names == {rule["alert"] for rule in rules()}
