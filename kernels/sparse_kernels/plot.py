"""`python -m sparse_kernels.plot`: speed-up over dense attention and density, by prompt length, from a result file.

The file is what `make bench-kernels` writes; each figure keeps the baseline that its row names.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

_SHAPE = re.compile(r"(?P<heads>.+), (?P<tokens>\d+) tokens, density (?P<density>[\d.]+)$")
_NAME = re.compile(r"ours, (?P<tier>\w+), selection included$")


class Point(NamedTuple):
    """One measured prompt.

    Attributes:
        tokens: its length.
        density: attended over causal pairs.
        ratio: times faster than the row's baseline.
    """

    tokens: int
    density: float
    ratio: float


def points(document: dict[str, Any]) -> dict[str, list[Point]]:
    """Prompts with selection included, in order of length, by tier and heads.

    Raises:
        ValueError: when the file has no such row.
    """
    found: dict[str, list[Point]] = defaultdict(list)
    if not isinstance(document, dict):
        raise ValueError("is no result file")
    for row in document.get("rows", []):
        name, shape = _NAME.fullmatch(row["name"]), _SHAPE.fullmatch(row["shape"])
        if name and shape and row["ratio"] is not None:
            point = Point(int(shape["tokens"]), float(shape["density"]), row["ratio"])
            found[f"{name['tier']}, {shape['heads']}"].append(point)
    if not found:
        raise ValueError("rows: none of prefill with selection included; is this the file of make bench-kernels?")
    return {name: sorted(each) for name, each in sorted(found.items())}


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws both charts into one PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, density) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for name, each in points(document).items():
        lengths = [point.tokens for point in each]
        speed.plot(lengths, [point.ratio for point in each], marker=".", label=name)
        density.plot(lengths, [point.density for point in each], marker=".", label=name)
    speed.axhline(1.0, color="gray", linewidth=0.8)
    speed.set_ylabel("times dense attention, selection included")
    density.set_ylabel("attended over causal pairs")
    for axes in (speed, density):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("prompt, tokens")
        axes.grid(alpha=0.3)
    speed.legend(fontsize=7)
    head = document["header"]
    figure.suptitle(f"{head['device']}, {head['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Draws; 2 when there is nothing to draw from."""
    parser = argparse.ArgumentParser(prog="python -m sparse_kernels.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/kernels.json"), help="the result file")
    parser.add_argument("--out", type=Path, help="PNG file; beside the result file without it")
    options = parser.parse_args(arguments)
    path = options.out or options.results.with_suffix(".png")
    try:
        draw(json.loads(options.results.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        print(f"error: {options.results} is not there; make bench-kernels writes it, on a GPU", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {options.results}: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
