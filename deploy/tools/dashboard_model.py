"""What a dashboard is, the queries that they share, and Grafana's JSON of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7
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
class Dashboard:
    """One dashboard; ``variables`` are filters by name, each the label values of a metric."""

    name: str
    title: str
    what: str
    panels: tuple[Panel, ...]
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


def to_grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Grafana's JSON model (schemaVersion 39)."""
    return {
        "uid": f"sparsity-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.what,
        "tags": ["sparsity-router"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), *(_variable(*each) for each in dashboard.variables.items())]},
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
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
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
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
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": source,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": expr, "legendFormat": legend}
            for place, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
