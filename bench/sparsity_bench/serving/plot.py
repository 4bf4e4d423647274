"""`python -m sparsity_bench.serving.plot`: charts of the result file that `make bench-serving` writes.

Each tier's time to first token and time a token beside the dense tier's, and the mixed load.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from sparsity_bench.kernels.plot import command

# Names of rows, and what their shapes say.
FIRST, TOKEN, THROUGHPUT = "time to first token", "time per output token", "throughput of a mixed load"
LENGTH = re.compile(r".+, (\d+) tokens(, density .+)?$")
BATCH = re.compile(r".+, (\d+ x \d+) tokens, density .+$")

Figures = dict[str, dict[str, tuple[float, float | None]]]
"""By tier and then by shape: the figure in its unit, and how many times better than dense."""


def figures(document: dict[str, Any], name: str, shape: re.Pattern[str] | None = None) -> Figures:
    """The rows of one name.

    Raises:
        ValueError: when there is none.
    """
    found: Figures = defaultdict(dict)
    for row in document["rows"]:
        tier, _, what = row["name"].partition(": ")
        match = shape.fullmatch(row["shape"]) if shape else None
        if what == name and row["value"] is not None and (match or shape is None):
            found[tier][match[1] if match else row["shape"]] = (row["value"], row["ratio"])
    if not found:
        raise ValueError(f"rows: none of {name}; is this the file of make bench-serving?")
    return dict(found)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws all charts into one PNG file.

    Raises:
        ValueError: when the file has no such rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((seconds, times), (step, load)) = pyplot.subplots(2, 2, figsize=(13, 9))
    for tier, each in figures(document, FIRST, LENGTH).items():
        points = sorted((int(length), *figure_of) for length, figure_of in each.items())
        lengths = [length for length, _, _ in points]
        seconds.plot(lengths, [value for _, value, _ in points], marker=".", label=tier)
        if tier != "dense":
            beside = [(length, ratio) for length, _, ratio in points if ratio is not None]
            times.plot(*zip(*beside, strict=True), marker=".", label=tier)
    seconds.set_yscale("log")
    seconds.set_ylabel("seconds to the first token")
    times.set_ylabel("time to first token, times dense")
    times.axhline(1.0, color="gray", linewidth=0.8)
    for axes in (seconds, times):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("prompt, tokens")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _bars(step, figures(document, TOKEN, BATCH), 1e3)
    step.set_ylabel("milliseconds a token")
    _bars(load, figures(document, THROUGHPUT), 1e-3)
    load.set_ylabel("mixed load, thousand tokens a second")
    head = document["header"]
    figure.suptitle(f"{head['model']}, {head['device']}, {head['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: Any, found: Figures, scale: float) -> None:
    """A group of bars for each shape, a bar for each tier, with how many times dense it is on top."""
    labels = list(dict.fromkeys(shape for each in found.values() for shape in each))
    for number, (tier, each) in enumerate(found.items()):
        at = [labels.index(shape) + number / (len(found) + 1) for shape in each]
        bars = axes.bar(at, [value * scale for value, _ in each.values()], width=1 / (len(found) + 1), label=tier)
        axes.bar_label(bars, ["" if ratio is None else f"{ratio:.2f}" for _, ratio in each.values()], fontsize=7)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.legend(fontsize=8)


def main(arguments: list[str] | None = None) -> int:
    """Draws; 2 when there is nothing to draw from."""
    return command("sparsity_bench.serving.plot", __doc__, "serving", draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
