"""The report for people: tables by length and task with dense beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsity_serving.benchmark import Row

from sparsity_quality.reports.table import Standing, Table


def markdown(
    header: Mapping[str, object], table: Table, verdict: Sequence[Row], warning: str, charts: Sequence[str] = ()
) -> str:
    """The whole report.

    Args:
        header: device, versions, date and command.
        table: the standings.
        verdict: rows with goals.
        warning: the section on coverage; may be empty.
        charts: file names of pictures beside the report.
    """
    lines = ["# What sparsity costs", ""]
    for key, value in header.items():
        words = ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {key}: {words}")
    lines += ["", "## Goals", "", *_verdict(verdict)]
    lines += ["", "## All contenders", "", _EXPLAINED, ""]
    for length in sorted({one.length for one in table.standings}):
        lines += [f"### {length} tokens", "", *_overview(table, length), ""]
    lines += ["## Points by task and length", "", _TASKS, ""]
    for name in table.names():
        own = [one for one in table.standings if one.subject.name == name]
        if own[0].subject.kind in ("profile", "oracle", "uncalibrated") and any(one.tasks for one in own):
            lines += [f"### {name}", "", *_tasks(own, table), ""]
    if charts:
        lines += ["## Charts", "", *(f"![{chart.removesuffix('.png')}]({chart})" for chart in charts), ""]
    return "\n".join([*lines, warning]).rstrip("\n") + "\n"


_EXPLAINED = """\
Density: attended over causal pairs of the prefill, all layers. Points lost: dense minus own, mean over tasks, with the
standard error of the difference. Perplexity, divergence (nats) and agreement of the most likely token: second half of
long documents, teacher-forced, beside dense; run: tokens until the most likely token first differs. Seconds: prefill,
times dense, on this machine; oracles score every row against every key. `beside` names the profile whose density a
subject was set to. Selectors and patterns ran fewer tasks, and their points are over those."""
_TASKS = "Each cell: points, and dense's in brackets."


def _verdict(verdict: Sequence[Row]) -> list[str]:
    lines = ["| goal | measured on | value | bound | met |", "|---|---|---|---|---|"]
    for row in verdict:
        if row.goal is not None and row.value is not None:
            base = f" ({row.baseline}: {row.baseline_value:.4g})" if row.baseline_value is not None else ""
            met = "yes" if row.met else "**no**"
            lines.append(f"| {row.name} | {row.shape} | {row.value:.4g} {row.unit}{base} | {row.goal} | {met} |")
    return lines


def _overview(table: Table, length: int) -> list[str]:
    lines = [
        "| contender | kind | density | coverage | points lost | perplexity | divergence | agreement | run | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in table.standings:
        if one.length == length:
            lost = f"{one.loss:+.2f} ± {one.doubt:.2f}" if one.tasks else ""
            cells = (
                one.subject.name, one.subject.kind, f"{one.density:.3f}", f"{one.coverage:.3f}", lost,
                _number(one.perplexity), _number(one.divergence), _number(one.agreement, 3), _number(one.run, 1),
                f"{one.seconds:.2f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _tasks(own: Sequence[Standing], table: Table) -> list[str]:
    lengths = [one.length for one in own]
    lines = [f"| task | {' | '.join(map(str, lengths))} |", "|---" * (len(lengths) + 1) + "|"]
    for task in sorted({task for one in own for task in one.tasks}):
        cells = []
        for one in own:
            dense = table.at("dense", one.length)
            assert dense is not None
            cells.append(f"{one.tasks[task]:.1f} ({dense.tasks[task]:.1f})" if task in one.tasks else "")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
