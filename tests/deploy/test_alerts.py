"""Alerts and dashboards ask for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from promql import DASHBOARDS, ROOT, alerts, documented, panels, selectors
from sparsity_policies.model import Reason

_RUNBOOKS = ROOT / "docs" / "runbooks"


def test_alerts_and_dashboards_ask_for_metrics_that_there_are() -> None:
    asked = [str(rule["expr"]) for rule in alerts()] + [expression for _, _, expression in panels()]
    families = {selector.family for expression in asked for selector in selectors(expression)}
    assert len(families) > 25
    assert not families - documented()


def test_what_routers_and_workers_both_serve_is_asked_of_one_of_them() -> None:
    asked = [(str(rule["alert"]), str(rule["expr"])) for rule in alerts()]
    asked += [(panel, expression) for _, panel, expression in panels()]
    for name, expression in asked:
        for selector in selectors(expression):
            if selector.family.startswith(("gen_ai_", "sparsity_attention_density", "sparsity_attention_coverage")):
                assert "sparsity_domain" in selector.labels, f"{name}: {selector.metric}"


def test_what_is_no_promql_is_told() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum(rate(sparsity_tokens_total[5m])")
    (selector,) = selectors('rate(sparsity_tokens_total{sparsity_tier="dense"}[$__rate_interval])')
    assert selector == ("sparsity_tokens_total", frozenset({"sparsity_tier"}))
    assert selector.family == "sparsity_tokens"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    named = {rule["annotations"]["runbook"] for rule in alerts()}  # type: ignore[index]
    assert named == {str(path.relative_to(ROOT)) for path in _RUNBOOKS.glob("*.md")}


def test_every_alert_is_played() -> None:
    played = yaml.safe_load((Path(__file__).parent / "alerts_test.yaml").read_text())["tests"]
    names = {case["alertname"] for test in played for case in test["alert_rule_test"]}
    assert names == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_panels_do_not_lie_on_each_other_and_use_the_filters(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells
        cells |= covered
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    filters = {variable["name"] for variable in dashboard["templating"]["list"]} - {"source"}
    assert all(f"${name}" in asked for name in filters)


def test_there_are_the_four_dashboards() -> None:
    assert {path.stem for path in DASHBOARDS.glob("*.json")} == {"overview", "domain", "worker", "quality"}


def test_dashboards_look_at_a_namespace_a_release_and_a_model() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    modelled = {
        name
        for names, by in re.findall(r"(?m)^\| (`(?:sparsity|gen_ai)_[^|]*) \| ([^|]*) \|", metrics)
        for name in re.findall(r"`(\w+)`", names)
        if "model" in by.split(", ")
    }
    assert len(modelled) > 5
    for _, panel, expression in panels():
        for selector in selectors(expression):
            assert {"namespace", "app_kubernetes_io_instance"} <= selector.labels, panel
            assert ("gen_ai_request_model" in selector.labels) == (selector.family in modelled), (
                f"{panel}: {selector.family}"
            )
    for path in DASHBOARDS.glob("*.json"):
        variables = {each["name"]: each for each in json.loads(path.read_text())["templating"]["list"]}
        assert {"namespace", "release"} <= variables.keys()
        # Without Kubernetes there are no such labels.
        assert variables["release"]["allValue"] == ".*"


def test_each_reason_to_be_denser_than_policy_says_has_its_panel() -> None:
    shown = {
        title: set(found[1].split("|"))
        for _, title, expression in panels()
        if (found := re.search(r'sparsity_reason=~"([A-Z_|]+)"', expression))
    }
    known = {reason.name for reason in Reason}
    assert all(reasons <= known for reasons in shown.values())
    doubts = {"FLAGGED", "UNKNOWN_DOMAIN", "STALE_POLICY", "CLASSIFIER_FAILED", "LOW_CONFIDENCE", "SCAN_TRUNCATED"}
    assert shown["In doubt, so dense"] >= doubts
    # Who is full is no doubt.
    assert "TIER_FULL" not in shown["In doubt, so dense"]
    assert shown["Denser for want of a worker"] == {"TIER_FULL", "TIER_UNAVAILABLE", "MISSING_TELEMETRY"}


def test_capacity_has_a_row_by_tier() -> None:
    shown = json.loads((DASHBOARDS / "overview.json").read_text())["panels"]
    (row,) = (place for place, panel in enumerate(shown) if panel["type"] == "row")
    assert shown[row]["title"] == "Capacity, by tier"
    below = shown[row + 1 :]
    assert all(panel["gridPos"]["y"] > shown[row]["gridPos"]["y"] for panel in below)
    assert sum("sparsity_tier" in target["expr"] for panel in below for target in panel["targets"]) >= 5
