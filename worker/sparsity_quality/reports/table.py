"""Figures of a subject at a length, and beside dense, out of the cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from sparsity_quality.runs.results import Cell, Results
from sparsity_quality.runs.suite import Cases, Lineup, Subject
from sparsity_quality.tasks.cases import DOCUMENTS


@dataclass(frozen=True, slots=True)
class Standing:
    """A subject at a length.

    Attributes:
        subject: who.
        length: tokens.
        density: mean over cells, attended over causal pairs, all layers.
        coverage: mean over cells, estimated.
        seconds: prefill time over dense's on the same cases.
        tasks: score of each task, points out of 100.
        loss: points that the mean over tasks is below dense's.
        doubt: standard error of ``loss``, from the differences of single questions.
        perplexity: times dense's, geometric mean over documents; None without documents.
        divergence: nats from dense's distribution.
        agreement: share of positions with dense's most likely token.
        run: tokens until the most likely token first differs.
    """

    subject: Subject
    length: int
    density: float
    coverage: float
    seconds: float
    tasks: dict[str, float]
    loss: float
    doubt: float
    perplexity: float | None
    divergence: float | None
    agreement: float | None
    run: float | None


class Table:
    """Standings at every length.

    Args:
        results: all cells; those of other cases are left alone.
        cases: by length.
        lineup: subjects of a length, dense first.
    """

    def __init__(self, results: Results, cases: Cases, lineup: Lineup) -> None:
        self.cells: dict[tuple[str, int], list[Cell]] = {}
        self.standings: list[Standing] = []
        for length, each in sorted(cases.items()):
            wanted = {case.digest for _, case in each}
            by_digest: dict[str, list[Cell]] = {}
            for cell in results:
                if cell.length == length and cell.case in wanted:
                    by_digest.setdefault(cell.digest, []).append(cell)
            line = lineup(length)
            true = {cell.case: cell for cell in by_digest.get(line[0].digest, [])}
            for subject in line:
                own = [cell for cell in by_digest.get(subject.digest, []) if cell.case in true]
                if own:
                    self.cells[subject.name, length] = own
                    self.standings.append(_standing(subject, length, own, true))

    def at(self, name: str, length: int) -> Standing | None:
        """The standing of a subject by its name."""
        return next((one for one in self.standings if (one.subject.name, one.length) == (name, length)), None)

    def names(self) -> list[str]:
        """Subjects in their order."""
        return list(dict.fromkeys(one.subject.name for one in self.standings))


def _standing(subject: Subject, length: int, own: list[Cell], true: dict[str, Cell]) -> Standing:
    pairs = [(cell, true[cell.case]) for cell in own]
    scores: dict[str, list[tuple[float, float]]] = {}
    for cell, dense in pairs:
        for task, values in cell.scores.items():
            scores.setdefault(task, []).extend(zip(values, dense.scores[task], strict=True))
    tasks = {task: 100 * fmean(value for value, _ in values) for task, values in scores.items()}
    points = {task: [(100 * dense, 100 * value) for value, dense in values] for task, values in scores.items()}
    loss, doubt = paired(points)
    read = [cell.reading for cell in own if cell.family == DOCUMENTS]
    return Standing(
        subject, length,
        fmean(cell.density for cell in own), fmean(cell.coverage for cell in own),
        sum(cell.seconds for cell in own) / max(sum(dense.seconds for _, dense in pairs), 1e-9),
        tasks, loss, doubt,
        math.exp(fmean(one["loss"] - one["dense_loss"] for one in read)) if read else None,
        fmean(one["divergence"] for one in read) if read else None,
        fmean(one["agreement"] for one in read) if read else None,
        fmean(one["run"] for one in read) if read else None,
    )  # fmt: skip


def paired(scores: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """How far the second of each task's pairs lie below the first, mean over tasks, and its standard error."""
    dropped = [[one - other for one, other in pairs] for pairs in scores.values()]
    if not dropped:
        return 0.0, 0.0
    errors = [stdev(values) ** 2 / len(values) for values in dropped if len(values) > 1]
    return fmean(fmean(values) for values in dropped), math.sqrt(sum(errors)) / len(dropped)
