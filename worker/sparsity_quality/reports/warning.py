"""Coverage as an early warning: how well its estimate foretells loss, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr
from sparsity_serving.benchmark import Row

from sparsity_quality.reports.goals import BOUNDS
from sparsity_quality.reports.table import Table
from sparsity_quality.runs.results import Cell
from sparsity_quality.tasks.cases import DOCUMENTS

# A rank correlation below this is no warning.
_USEFUL = 0.5
_LEAST = 4
# Kinds that go by the profiles' own score; of others coverage is estimated by other means.
OWN_KINDS = ("profile", "uncalibrated", "sweep")


@dataclass(frozen=True, slots=True)
class Link:
    """How coverage and loss go together.

    Attributes:
        what: task, or figure of a document.
        length: tokens.
        cells: how many.
        rank: Spearman's correlation of coverage and loss; -1 is a perfect warning. None where loss never changes,
            or with fewer than four cells.
    """

    what: str
    length: int
    cells: int
    rank: float | None


def links(table: Table) -> list[Link]:
    """For every task and length, over the cells that are sparse and go by the profiles' score."""
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for (name, length), cells in table.cells.items():
        standing = table.at(name, length)
        assert standing is not None
        if standing.subject.kind not in OWN_KINDS:
            continue
        dense = {cell.case: cell for cell in table.cells["dense", length]}
        for cell in cells:
            if cell.density < 1:
                for what, loss in _losses(cell, dense[cell.case]):
                    points.setdefault((what, length), []).append((cell.coverage, loss))
    found = []
    for (what, length), pairs in sorted(points.items()):
        coverages, losses = zip(*pairs, strict=True)
        varied = len(pairs) >= _LEAST and len(set(losses)) > 1 and len(set(coverages)) > 1
        rank = float(spearmanr(coverages, losses).statistic) if varied else None
        found.append(Link(what, length, len(pairs), rank))
    return found


def _losses(cell: Cell, dense: Cell) -> list[tuple[str, float]]:
    if cell.family == DOCUMENTS:
        return [
            ("perplexity", cell.reading["loss"] - cell.reading["dense_loss"]),
            ("divergence", cell.reading["divergence"]),
        ]
    return [(task, sum(dense.scores[task]) - sum(values)) for task, values in sorted(cell.scores.items())]


def guard(cells: Sequence[Cell], perplexity: float) -> float | None:
    """The least coverage above which every document stayed within ``perplexity`` times dense; None when none did."""
    found = None
    for cell in sorted(cells, key=lambda one: -one.coverage):
        if math.exp(cell.reading["loss"] - cell.reading["dense_loss"]) > perplexity:
            break
        found = cell.coverage
    return found


def documents(table: Table, length: int) -> list[Cell]:
    """The sparse document cells at a length that go by the profiles' score."""
    found = []
    for (name, at), cells in table.cells.items():
        standing = table.at(name, at)
        if at == length and standing is not None and standing.subject.kind in OWN_KINDS:
            found += [cell for cell in cells if cell.family == DOCUMENTS and cell.density < 1]
    return found


def section(table: Table) -> tuple[str, list[Row]]:
    """The report's section on coverage, and rows of the result file; both empty without sparse cells."""
    known = links(table)
    if not known:
        return "", []
    lines = ["## Coverage as an early warning", "", _INTRODUCTION, ""]
    lines += ["| loss of | length | cells | rank correlation with coverage | a warning |", "|---|---|---|---|---|"]
    rows = []
    for link in known:
        rank = "" if link.rank is None else f"{link.rank:+.2f}"
        useful = "yes" if link.rank is not None and link.rank <= -_USEFUL else "**no**"
        if link.rank is None:
            useful = "too few cells" if link.cells < _LEAST else "loss never changed"
        lines.append(f"| {link.what} | {link.length} | {link.cells} | {rank} | {useful} |")
        if link.rank is not None:
            shape = f"{link.length} tokens, {link.cells} cells"
            rows.append(Row(f"coverage and loss of {link.what}, rank correlation", shape, round(link.rank, 3), ""))
    lines += [
        "",
        _GUARDS,
        "",
        "| tier | length | perplexity bound | least coverage without a miss |",
        "|---|---|---|---|",
    ]
    for tier, bounds in BOUNDS.items():
        for length in sorted({at for _, at in table.cells}):
            cells = documents(table, length)
            if cells:
                least = guard(cells, bounds.perplexity)
                value = "none: coverage does not tell" if least is None else f"{least:.3f}"
                lines.append(f"| {tier} | {length} | {bounds.perplexity:g} | {value} |")
                if least is not None:
                    shape = f"{length} tokens, {len(cells)} documents"
                    rows.append(
                        Row(f"guard: least coverage within {tier}'s perplexity", shape, round(least, 4), "share")
                    )
    return "\n".join([*lines, "", *_deceived(table)]), rows


def _deceived(table: Table) -> list[str]:
    """Selectors that report as much coverage as a profile, and lose more."""
    lines = []
    for own in table.standings:
        if own.subject.kind != "profile" or own.divergence is None or own.density == 1:
            continue
        for other in table.standings:
            if (
                other.length == own.length
                and other.divergence is not None
                and other.subject.kind in ("selector", "pattern")
                and other.coverage >= own.coverage
                and other.divergence > own.divergence
            ):
                lines.append(
                    f"- {other.subject.name}, {other.length} tokens: coverage {other.coverage:.3f} and divergence"
                    f" {other.divergence:.3f}, {own.subject.name} has {own.coverage:.3f} and {own.divergence:.3f}."
                )
    head = "Coverage must not be compared between selectors. These report more, and lose more:"
    return [head, "", *lines] if lines else []


_INTRODUCTION = (
    "Spearman's rank correlation of the estimated coverage that a request reports with what it lost, over cells of the"
    " profiles, of one threshold for all heads, and of a sweep of thresholds. -1: the less coverage, the more loss."
)
_GUARDS = "The least coverage above which no document of these cells lost more perplexity than a tier may:"
