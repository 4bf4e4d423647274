"""Pictures of a report: quality against length and density, and against speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsity_quality.reports.table import Standing, Table

_MARKERS = {
    "profile": "o",
    "oracle": "*",
    "uncalibrated": "s",
    "selector": "^",
    "pattern": "x",
    "dense": "D",
    "sweep": ".",
}


def draw(table: Table, folder: Path) -> list[str]:
    """Writes the PNG files that there is data for; their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    longest = max(one.length for one in table.standings)
    there = [one for one in table.standings if one.length == longest]

    def finish(name: str, x: str, y: str) -> None:
        pyplot.xlabel(x)
        pyplot.ylabel(y)
        pyplot.grid(alpha=0.3)
        pyplot.legend(fontsize=7)
        pyplot.tight_layout()
        pyplot.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close()
        drawn.append(f"{name}.png")

    pyplot.figure(figsize=(8, 4.5))
    for name in table.names():
        own = [one for one in table.standings if one.subject.name == name and one.tasks]
        if own and own[0].subject.kind in ("dense", "profile"):
            points = [sum(one.tasks.values()) / len(one.tasks) for one in own]
            pyplot.plot([one.length for one in own], points, marker=_MARKERS[own[0].subject.kind], label=name)
    pyplot.xscale("log", base=2)
    finish("quality-by-length", "context, tokens", "mean task score, points")

    measured = [one for one in there if one.divergence and one.subject.kind != "dense"]
    if measured:
        pyplot.figure(figsize=(8, 4.5))
        for one in measured:
            _point(pyplot, one.density, one)
        pyplot.yscale("log")
        finish("quality-by-density", f"density at {longest} tokens, all layers", "divergence from dense, nats")
        pyplot.figure(figsize=(8, 4.5))
        for one in measured:
            if one.subject.kind != "oracle":
                _point(pyplot, 1 / one.seconds, one)
        pyplot.yscale("log")
        finish(
            "speed-and-quality", f"prefill at {longest} tokens, times as fast as dense", "divergence from dense, nats"
        )
    return drawn


def _point(pyplot: Any, x: float, one: Standing) -> None:
    pyplot.scatter(x, one.divergence, marker=_MARKERS[one.subject.kind], label=one.subject.name)
