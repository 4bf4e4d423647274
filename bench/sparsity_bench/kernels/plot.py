"""`python -m sparsity_bench.kernels.plot`: charts of a result file that `make bench-kernels` writes.

Prefill beside the baseline that its rows name, the rate of attention over forced indexes and dense, and decode beside
dense. What ran back to back is drawn where there is such a row, what ran after a pause where there is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_PROMPT = re.compile(r"(?P<heads>.+), (?P<tokens>\d+) tokens(, density (?P<density>[\d.]+))?$")
_LOAD = re.compile(r"(?P<heads>.+), (?P<load>\d+ x \d+) tokens$")
_TIER = re.compile(r"prefill, (?P<tier>\w+, means of \d), selection included, (?P<mode>cool|sustained)$")
_RATE = re.compile(r"(?P<what>(dense )?prefill, [^,]+), (?P<mode>cool|sustained), rate$")
_STEP = re.compile(r"decode, (?P<tier>[^,]+)$")


class Point(NamedTuple):
    """One measured prompt.

    Attributes:
        tokens: its length.
        value: times faster than the row's baseline, or TFLOP/s.
        density: attended over causal pairs; None where the row does not say.
    """

    tokens: int
    value: float
    density: float | None


Lines = dict[str, list[Point]]


def _points(document: dict[str, Any], name: re.Pattern[str], label: str, value: str) -> Lines:
    found: dict[str, dict[int, Point]] = defaultdict(dict)
    for row in document.get("rows", []):
        names, shape = name.fullmatch(row["name"]), _PROMPT.fullmatch(row["shape"])
        if names and shape and row[value] is not None:
            line = found[f"{names[label]}, {shape['heads']}"]
            tokens, density = int(shape["tokens"]), shape["density"]
            # Sustained rows follow cool ones of the same length.
            line[tokens] = Point(tokens, row[value], None if density is None else float(density))
    return {line: sorted(each.values()) for line, each in sorted(found.items())}


def drawable(document: dict[str, Any]) -> bool:
    """Whether the file has what the charts are of: a run of some parts may have none of it."""
    return bool(_points(document, _TIER, "tier", "ratio"))


def tiers(document: dict[str, Any]) -> Lines:
    """Prompts with selection included, in order of length, by tier, blocks behind a mean, and heads.

    Raises:
        ValueError: when the file has no such row.
    """
    if not isinstance(document, dict):
        raise ValueError("is no result file")
    found = _points(document, _TIER, "tier", "ratio")
    if not found:
        raise ValueError("rows: none of prefill with selection included; is this the file of make bench-kernels?")
    return found


def rates(document: dict[str, Any]) -> Lines:
    """TFLOP/s of attention alone, dense and over a full and a random index, of the heads that the first row is of."""
    found = _points(document, _RATE, "what", "value")
    heads = next(iter(document["rows"]))["shape"].split(" tokens")[0].rsplit(", ", 1)[0]
    return {line.removesuffix(f", {heads}"): each for line, each in found.items() if line.endswith(heads)}


def steps(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Times dense decode, by tier and then by load."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in document["rows"]:
        name, shape = _STEP.fullmatch(row["name"]), _LOAD.fullmatch(row["shape"])
        if name and shape and row["ratio"] is not None:
            found[name["tier"]][f"{shape['heads']}\n{shape['load']}"] = row["ratio"]
    return dict(found)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws all charts into one PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((speed, density), (rate, decode)) = pyplot.subplots(2, 2, figsize=(13, 9))
    for name, each in tiers(document).items():
        lengths = [point.tokens for point in each]
        speed.plot(lengths, [point.value for point in each], marker=".", label=name)
        density.plot(lengths, [point.density for point in each], marker=".", label=name)
    speed.axhline(1.0, color="gray", linewidth=0.8)
    speed.set_ylabel("prefill, times dense attention, selection included")
    density.set_ylabel("attended over causal pairs")
    for name, each in rates(document).items():
        style = "--" if name.startswith("dense") else "-"
        rate.plot([point.tokens for point in each], [point.value for point in each], style, marker=".", label=name)
    rate.set_ylabel("TFLOP/s of kept pairs")
    for axes in (speed, density, rate):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("prompt, tokens")
        axes.grid(alpha=0.3)
    loads = steps(document)
    labels = list(dict.fromkeys(load for each in loads.values() for load in each))
    for number, (name, ratios) in enumerate(loads.items()):
        at = [labels.index(load) + number / (len(loads) + 1) for load in ratios]
        decode.bar(at, list(ratios.values()), width=1 / (len(loads) + 1), label=name)
    decode.set_xticks(range(len(labels)), labels, fontsize=5)
    decode.axhline(1.0, color="gray", linewidth=0.8)
    decode.set_ylabel("decode, times dense attention, selection included")
    for axes in (speed, rate, decode):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    head = document["header"]
    figure.suptitle(f"{head['device']}, {head['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def command(
    module: str, about: str | None, name: str, draw: Callable[[dict[str, Any], Path], None], arguments: list[str] | None
) -> int:
    """The command line of a module that draws a result file: `--results`, `--out`.

    Args:
        module: of Python, that is run.
        about: what it says of itself.
        name: of the benchmark: `make bench-NAME` writes docs/benchmarks/NAME.json.
        draw: makes a PNG file of the result file's document, or raises ValueError, KeyError or TypeError.
        arguments: of the command line; None takes the process's.

    Returns:
        0, or 2 when there is nothing to draw from.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--results", type=Path, default=Path(f"docs/benchmarks/{name}.json"), help="the result file")
    parser.add_argument("--out", type=Path, help="PNG file; beside the result file without it")
    options = parser.parse_args(arguments)
    path = options.out or options.results.with_suffix(".png")
    try:
        draw(json.loads(options.results.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        print(f"error: {options.results} is not there; make bench-{name} writes it, on a GPU", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {options.results}: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Draws; 2 when there is nothing to draw from."""
    return command("sparsity_bench.kernels.plot", __doc__, "kernels", draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
