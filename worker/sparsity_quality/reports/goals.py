"""The verdict: rows of the result file, each goal with its figure, misses included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_serving.benchmark import Row, judged

from sparsity_quality.reports.table import Standing, Table


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a profile may lose, at the longest length.

    Attributes:
        points: of the mean task score, out of 100.
        perplexity: times dense attention's.
        density: attended over causal pairs, all layers.
    """

    points: float
    perplexity: float
    density: float


BOUNDS: Mapping[str, Bounds] = {"moderate": Bounds(0.5, 1.01, 0.35), "aggressive": Bounds(1.5, 1.03, 0.22)}
_ORACLE = 1.5
_CELLS = 0.8


def rows(table: Table, tiers: Mapping[str, str], longest: int) -> list[Row]:
    """Everything that was measured, and the goals at the longest length.

    Args:
        table: the standings.
        tiers: the tier of each profile, by its name in the table.
        longest: tokens.
    """
    found: list[Row] = []
    for name, tier in tiers.items():
        standing = table.at(name, longest)
        if standing is not None and tier in BOUNDS:
            found += _bounded(standing, BOUNDS[tier])
            found += _oracle(standing, table.at(f"oracle beside {name}", longest))
            found += _cells(table, name)
    judged_already = {(row.name, row.shape) for row in found}
    plain = [row for standing in table.standings for row in _plain(standing)]
    return [row for row in plain if (row.name, row.shape) not in judged_already] + found


def _plain(standing: Standing) -> list[Row]:
    shape = f"{standing.length} tokens, density {standing.density:.3f}"
    name, found = standing.subject.name, []
    for task, points in sorted(standing.tasks.items()):
        found.append(Row(f"{name}: {task}", shape, round(points, 2), "points"))
    if standing.perplexity is not None:
        found.append(Row(f"{name}: perplexity", shape, round(standing.perplexity, 5), "times dense"))
    for what, value, unit in (
        ("divergence", standing.divergence, "nats"),
        ("agreement", standing.agreement, "share"),
        ("run to first difference", standing.run, "tokens"),
    ):
        if value is not None:
            found.append(Row(f"{name}: {what}", shape, round(value, 5), unit))
    return found


def _bounded(standing: Standing, bounds: Bounds) -> list[Row]:
    shape = f"{standing.length} tokens, density {standing.density:.3f}"
    name = standing.subject.name
    found = []
    if standing.tasks:
        row = Row(
            f"{name}: points lost, mean over tasks, standard error {standing.doubt:.2f}", shape, standing.loss, "points"
        )
        found.append(judged(row, f"<= {bounds.points:g} points", met=standing.loss <= bounds.points))
    if standing.perplexity is not None:
        row = Row(f"{name}: perplexity", shape, standing.perplexity, "times dense")
        found.append(judged(row, f"<= {bounds.perplexity:g} times", met=standing.perplexity <= bounds.perplexity))
    row = Row(f"{name}: density, all layers", shape, standing.density, "share of pairs")
    found.append(judged(row, f"<= {bounds.density:g}", met=standing.density <= bounds.density))
    return found


def _oracle(own: Standing, oracle: Standing | None) -> list[Row]:
    """How much more the profile loses than the oracle at the same density."""
    if oracle is None or own.divergence is None or oracle.divergence is None:
        return []
    found = []
    assert own.perplexity is not None
    assert oracle.perplexity is not None
    for what, loss, least in (
        ("divergence", own.divergence, oracle.divergence),
        ("perplexity above dense", own.perplexity - 1, oracle.perplexity - 1),
    ):
        shape = f"{own.length} tokens, density {own.density:.3f}, oracle {oracle.density:.3f}"
        row = Row(
            f"{own.subject.name}: {what}, beside the oracle", shape, loss, "nats" if what == "divergence" else "share",
            baseline="oracle", baseline_value=least, ratio=least / loss if loss > 0 else None,
        )  # fmt: skip
        found.append(judged(row, f"at most {_ORACLE:g} times the oracle's", met=loss <= _ORACLE * max(least, 0.0)))
    return found


def _cells(table: Table, name: str) -> list[Row]:
    """In how many cells of task and length the calibrated profile beats one threshold of the same density."""
    won = tied = cells = 0
    for own in table.standings:
        if own.subject.name != name:
            continue
        other = table.at(f"uncalibrated beside {name}", own.length)
        if other is None:
            continue
        pairs = [(points, other.tasks[task]) for task, points in own.tasks.items()]
        if own.perplexity is not None and other.perplexity is not None:
            assert own.divergence is not None
            assert other.divergence is not None
            pairs += [(-own.perplexity, -other.perplexity), (-own.divergence, -other.divergence)]
        cells += len(pairs)
        won += sum(mine > theirs for mine, theirs in pairs)
        tied += sum(mine == theirs for mine, theirs in pairs)
    if not cells:
        return []
    shape = f"{cells} cells of task and length, {won} won, {tied} equal, {cells - won - tied} lost"
    row = Row(f"{name}: cells in which it beats one threshold for all heads", shape, won / cells, "share")
    return [judged(row, f">= {_CELLS:g}", met=won / cells >= _CELLS)]
