"""`python -m sparsity_bench.serving.summary`: a run of `make bench-serving` at a glance, as a Markdown table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsity_rpc.tiers import TIERS

from sparsity_bench.serving.plot import BATCH, FIRST, LENGTH, THROUGHPUT, TOKEN, Figures, figures


def summary(document: dict[str, Any]) -> str:
    """Each tier's figures, with how many times better than dense they are.

    Raises:
        ValueError: when the file has no such rows.
    """
    head = document["header"]
    baseline = next((row["baseline"] for row in document["rows"] if row["baseline"]), "dense")
    lines = [
        f"| {head['model'].partition(',')[0]} on one {head['device']} | {baseline} | "
        + " | ".join(tier for tier in TIERS if tier != "dense")
        + " |",
        "|---" * (len(TIERS) + 1) + "|",
    ]
    lines += _lines(figures(document, FIRST, LENGTH), "first token of {:,} tokens", int, _seconds)
    lines += _lines(figures(document, TOKEN, BATCH), "a token, {} tokens", str, lambda value: f"{value * 1e3:.1f} ms")
    lines += _lines(figures(document, THROUGHPUT), "mixed load", str, lambda value: f"{value:,.0f} tokens/s")
    return "\n".join(lines)


def _lines(found: Figures, name: str, shape: Callable[[str], Any], told: Callable[[float], str]) -> Iterator[str]:
    for each in dict.fromkeys(key for tier in TIERS for key in found.get(tier, {})):
        cells = []
        for tier in TIERS:
            value, ratio = found.get(tier, {}).get(each, (None, None))
            beside = "" if ratio is None else f", {ratio:.2f} times dense"
            cells.append("" if value is None else told(value) + beside)
        yield f"| {name.format(shape(each))} | {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def main(arguments: list[str] | None = None) -> int:
    """Prints it; 2 when there is nothing to print."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.serving.summary", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/serving.json"), help="the result file")
    options = parser.parse_args(arguments)
    try:
        print(summary(json.loads(options.results.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {options.results}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
