"""Draws a dashboard from Prometheus' metrics: `python deploy/tools/dashboard_picture.py URL overview OUT.png`.

The server must have scraped the routers and workers; --minutes is how far back the picture goes.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from matplotlib import dates, pyplot, ticker
from promql import DASHBOARDS

_STEP_SECONDS = 5
_RATE = "1m"
_COLUMNS = 3
_DPI = 110
_COLOURS = ("#5794f2", "#ff9830", "#73bf69", "#b877d9", "#f2495c", "#8ab8ff", "#fade2a", "#e0b400")


def asked(url: str, path: str, **parameters: object) -> Any:
    """Prometheus' answer.

    Raises:
        OSError: when there is none.
    """
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=30) as answer:
        return json.load(answer)["data"]


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    """Grafana's {{label}}."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern).strip() or "all"


def formatter(unit: str) -> ticker.Formatter:
    """Numbers of an axis."""
    if unit == "percentunit":
        return ticker.PercentFormatter(1, decimals=0)
    return ticker.EngFormatter({"s": "s", "Bps": "B/s"}.get(unit, ""), sep=" ")


def draw(axes: Any, panel: Mapping[str, Any], url: str, start: float, end: float) -> None:
    """One panel."""
    axes.set_title(panel["title"], loc="left", fontsize=9, fontweight="bold")
    defaults = panel["fieldConfig"]["defaults"]
    series: list[tuple[str, list[datetime], list[float]]] = []
    for target in panel["targets"]:
        query = re.sub(r"\$\w+", ".*", target["expr"].replace("$__rate_interval", _RATE))
        if panel["type"] == "stat":
            found = asked(url, "query", query=query, time=end)["result"]
            value = float(found[0]["value"][1]) if found else 0.0
            axes.text(0.5, 0.5, f"{value:g}", ha="center", va="center", fontsize=44, color=_COLOURS[4 if value else 2])
            axes.axis("off")
            return
        for one in asked(url, "query_range", query=query, start=start, end=end, step=_STEP_SECONDS)["result"]:
            points = [(datetime.fromtimestamp(at), float(value)) for at, value in one["values"]]
            kept = [(at, value) for at, value in points if value == value]
            if kept:
                series.append((legend(target["legendFormat"], one["metric"]), *map(list, zip(*kept, strict=True))))
    if defaults["custom"]["stacking"]["mode"] == "normal" and series:
        moments = sorted({moment for _, times, _ in series for moment in times})
        rows = [[dict(zip(times, values, strict=True)).get(at, 0.0) for at in moments] for _, times, values in series]
        axes.stackplot(moments, rows, labels=[name for name, _, _ in series], colors=_COLOURS, alpha=0.8)
    else:
        for colour, (name, times, values) in zip(_COLOURS * 4, series, strict=False):
            axes.plot(times, values, label=name, color=colour, linewidth=1.3)
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    axes.set_xlim(datetime.fromtimestamp(start), datetime.fromtimestamp(end))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.yaxis.set_major_formatter(formatter(defaults["unit"]))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if series:
        axes.legend(fontsize=6.5, loc="upper left", ncols=2, framealpha=0.7)
    else:
        axes.text(0.5, 0.5, "nothing", transform=axes.transAxes, ha="center", va="center", color="grey")


def main() -> None:
    """Draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("dashboard")
    parser.add_argument("out")
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    dashboard = json.loads((DASHBOARDS / f"{options.dashboard}.json").read_text())
    panels, end = [panel for panel in dashboard["panels"] if panel["type"] != "row"], time.time()
    rows = -(-len(panels) // _COLUMNS)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=(14, 2.6 * rows), layout="constrained")
    figure.suptitle(f"{dashboard['title']}, {datetime.fromtimestamp(end):%Y-%m-%d %H:%M}", fontsize=11)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw(axes, panel, options.url, end - options.minutes * 60, end)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    figure.savefig(options.out, dpi=_DPI)


if __name__ == "__main__":
    main()
