"""Reads PromQL: what metrics and labels an expression asks for. As a program, checks all alerts and dashboards."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import promql_parser
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "helm" / "sparsity-router" / "files"
ALERTS = FILES / "alerts.yaml"
DASHBOARDS = FILES / "dashboards"
# Grafana's variables, by something that parses in their place.
_VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}
# The target's own, which Prometheus adds, and those of its pod that the chart's PodMonitor has it add.
TARGET_LABELS = {"instance", "job", "namespace", "pod", "app_kubernetes_io_component", "app_kubernetes_io_instance"}


class Selector(NamedTuple):
    """One selection of series: the metric, and the labels that it is narrowed by."""

    metric: str
    labels: frozenset[str]

    @property
    def family(self) -> str:
        """The metric of a sample's name, as docs/metrics.md names it."""
        return re.sub(r"_(total|bucket|count|sum)$", "", self.metric)


def selectors(expression: str) -> list[Selector]:
    """What an expression asks for.

    Raises:
        ValueError: when it is no PromQL.
    """
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    found: list[Selector] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(Selector(node.name or "", frozenset(m.name for m in node.matchers.matchers)))
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def alerts() -> list[dict[str, object]]:
    """The rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[tuple[str, str, str]]:
    """Dashboard, panel and expression of everything that a dashboard asks."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield path.name, panel["title"], target["expr"]


def documented() -> set[str]:
    """The metrics that docs/metrics.md explains."""
    return set(re.findall(r"`((?:sparsity|gen_ai)_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text()))


def main() -> None:
    """Checks that every expression parses and asks for documented metrics."""
    known = documented()
    asked = [("alerts.yaml", str(rule["alert"]), str(rule["expr"])) for rule in alerts()]
    asked += panels()
    for file, name, expression in asked:
        try:
            missing = {selector.family for selector in selectors(expression)} - known
        except ValueError as error:
            sys.exit(f"{file}: {name}: {error}")
        if missing:
            sys.exit(f"{file}: {name}: docs/metrics.md has no {', '.join(sorted(missing))}")
    print(f"PromQL: {len(asked)} expressions parse, and ask for metrics of docs/metrics.md")


if __name__ == "__main__":
    main()
