"""What a dashboard is, the queries that they share, and Grafana's JSON of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from promql import selectors

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7
# What every question is narrowed by: Prometheus' label of the namespace, and the PodMonitor's of the release. Without
# Kubernetes there are none, and All finds what has none.
SCOPE = {"namespace": "namespace", "release": "app_kubernetes_io_instance"}
# What is told by model; the other metrics are of a whole router or worker.
OF_MODELS = re.compile(
    r"gen_ai_server_|sparsity_tokens|sparsity_attention_(density|coverage)"
    r"|sparsity_router_(workers|wanted|waiting|in_flight|kv_use|breaker_open|retries)(_total)?$"
)
MODEL = "gen_ai_request_model"
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: what it shows, and the queries by the legend of their series."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    what: str = ""
    kind: str = "timeseries"
    stack: bool = False
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A heading over the panels that follow it."""

    title: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; ``variables`` are filters by name, each the label values of a metric."""

    name: str
    title: str
    what: str
    panels: tuple[Panel | Row, ...]
    variables: dict[str, tuple[str, str]] = field(default_factory=dict)


def rate(metric: str, by: str, where: str = "") -> str:
    """Sum of rates."""
    return f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))"


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """A histogram's quantile."""
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', kept, where)})"


def mean(metric: str, by: str, where: str = "") -> str:
    """A histogram's mean."""
    return f"{rate(f'{metric}_sum', by, where)} / {rate(f'{metric}_count', by, where)}"


def saved_share(by: str, where: str = "") -> str:
    """The share of dense attention that was not computed."""
    saved, took = (f"sparsity_attention_flops{kind}_total" for kind in ("_saved", ""))
    return f"{rate(saved, by, where)} / ({rate(saved, by, where)} + {rate(took, by, where)})"


def scoped(expression: str) -> str:
    """The same question, of the namespace, the release and the model that are looked at."""
    names = {selector.metric for selector in selectors(expression)}
    either = "|".join(sorted(names, key=len, reverse=True))

    def narrowed(match: re.Match[str]) -> str:
        labels = dict(SCOPE)
        if OF_MODELS.match(match[1]):
            labels["model"] = MODEL
        own = [f'{label}=~"${variable}"' for variable, label in labels.items()]
        return f"{match[1]}{{{','.join([*filter(None, [match[2]]), *own])}}}"

    return re.sub(rf"\b({either})\b(?:\{{([^}}]*)\}})?", narrowed, expression)


def to_grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Grafana's JSON model (schemaVersion 39)."""
    asked = [
        expression for panel in dashboard.panels if isinstance(panel, Panel) for expression in panel.queries.values()
    ]
    variables = {name: ("sparsity_router_workers", label) for name, label in SCOPE.items()}
    if any(OF_MODELS.match(selector.metric) for expression in asked for selector in selectors(expression)):
        variables["model"] = ("gen_ai_server_request_duration_seconds_count", MODEL)
    variables |= dashboard.variables
    return {
        "uid": f"sparsity-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.what,
        "tags": ["sparsity-router"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), *(_variable(*each) for each in variables.items())]},
        "panels": _placed(dashboard.panels),
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, values: tuple[str, str]) -> dict[str, Any]:
    metric, label = values
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        # Finds what has no such label too.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: tuple[Panel | Row, ...]) -> list[dict[str, Any]]:
    """The panels from left to right, and rows across."""
    made: list[dict[str, Any]] = []
    top = column = 0
    for number, panel in enumerate(panels):
        if column == _COLUMNS or (isinstance(panel, Row) and column):
            top, column = top + _HEIGHT, 0
        if isinstance(panel, Row):
            place = {"h": 1, "w": _COLUMNS * _WIDTH, "x": 0, "y": top}
            made.append({"id": number + 1, "type": "row", "title": panel.title, "collapsed": False, "gridPos": place})
            top += 1
        else:
            made.append(_panel(number, panel, {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": top}))
            column += 1
    return made


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    custom = {"stacking": {"mode": "normal" if panel.stack else "none"}, "fillOpacity": 20 if panel.stack else 0}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = custom
    else:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": 1}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": scoped(expr), "legendFormat": legend}
            for place, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
