"""The kernels of a run at a glance: a line each, with time and rate."""

from __future__ import annotations

from collections.abc import Sequence

from sparsity_serving.benchmark import Row

_RATE = ", rate"


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table of kernels, times and rates, and what became of the goals."""
    rates = {(row.name.removesuffix(_RATE), row.shape): row for row in rows if row.name.endswith(_RATE)}
    lines = ["| kernel | shape | time | rate | times the baseline |", "|---|---|---|---|---|"]
    for row in rows:
        if row.unit not in ("ms", "us a layer") or row.value is None:
            continue
        rate = rates.get((row.name, row.shape))
        told = f"{rate.value:.3g} {rate.unit}" if rate is not None and rate.value is not None else ""
        ratio = f"{row.ratio:.2f} ({row.baseline})" if row.ratio is not None else ""
        lines.append(f"| {row.name} | {row.shape} | {row.value:.4g} {row.unit} | {told} | {ratio} |")
    judged = [row for row in rows if row.met is not None]
    missed = [row for row in judged if not row.met]
    lines += ["", f"{len(judged) - len(missed)} of {len(judged)} goals met; missed:" if judged else "no goals here"]
    for row in missed:
        got = row.ratio if row.ratio is not None and "times" in (row.goal or "") else row.value
        lines.append(f"- {row.name}, {row.shape}: {got:.4g}, goal {row.goal}")
    return "\n".join(lines)
