"""The same cases on two devices: densities, scores and perplexities side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import Row, judged

from sparsity_quality.reports.table import paired
from sparsity_quality.runs.origins import Origin, Origins
from sparsity_quality.runs.results import Cell, Results

_DENSITY = 0.01
_PERPLEXITY = 0.005
_SAME = ("attends", "model", "weights", "text")
Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Side:
    """The cells of one device.

    Attributes:
        folder: where they lie.
        origin: of any of them; device, dtype, model and text are those of all.
        cells: by contender, length and case.
        origins: of each contender at each length.
    """

    folder: Path
    origin: Origin
    cells: dict[Key, Cell]
    origins: dict[tuple[str, int], Origin]

    @property
    def label(self) -> str:
        """Device and dtype."""
        return f"{self.origin.device}, {self.origin.dtype}"


def read(folder: Path) -> Side:
    """The cells of a folder.

    Raises:
        ConfigurationError: when there are none, or they are of several devices, models or settings.
    """
    cells: dict[Key, Cell] = {}
    origins: dict[tuple[str, int], Origin] = {}
    known = Origins(folder)
    for cell in Results(folder / "cells.jsonl"):
        if cell.digest not in known:
            raise ConfigurationError(f"{folder}: origins.json does not say what {cell.contender} was measured on")
        if (cell.contender, cell.length, cell.case) in cells:
            raise ConfigurationError(f"{folder}: {cell.contender} was measured in two ways; give each a folder")
        cells[cell.contender, cell.length, cell.case] = cell
        origins[cell.contender, cell.length] = known[cell.digest]
    if not cells:
        raise ConfigurationError(f"{folder}: holds no cells; run sparsity bench quality --folder {folder}")
    first = next(iter(origins.values()))
    for each in origins.values():
        if (each.device, each.dtype) != (first.device, first.dtype):
            raise ConfigurationError(
                f"{folder}: holds cells of {first.device} and of {each.device}; give each a folder"
            )
    return Side(folder, first, cells, origins)


def compare(base: Side, other: Side) -> list[Row]:
    """Figures of ``other`` beside those of ``base``, by contender and length.

    Raises:
        ConfigurationError: when they are not of the same cases, model, text and attention.
    """
    _alike(base, other)
    found = []
    for name, length in base.origins:
        keys = [key for key in base.cells if key[:2] == (name, length)]
        found += _rows(name, length, [base.cells[key] for key in keys], [other.cells[key] for key in keys])
    return found


def _alike(base: Side, other: Side) -> None:
    apart = base.cells.keys() ^ other.cells.keys()
    if apart:
        name, length, case = min(apart)
        lacks = other if (name, length, case) in base.cells else base
        raise ConfigurationError(
            f"{lacks.folder}: has no cell of {name} at {length} tokens on case {case}, which the other folder has"
            f" ({len(apart)} such); measure the same cases of the same text on both"
        )
    for at, mine in base.origins.items():
        for name in _SAME:
            if getattr(mine, name) != getattr(other.origins[at], name):
                raise ConfigurationError(
                    f"{other.folder}: {at[0]} at {at[1]} tokens is of another kind than in {base.folder}: {name} is"
                    f" {getattr(other.origins[at], name)}, not {getattr(mine, name)}"
                )


def _rows(name: str, length: int, base: Sequence[Cell], other: Sequence[Cell]) -> list[Row]:
    shape = f"{length} tokens, {len(base)} cases"
    mine, theirs = (fmean(cell.density for cell in side) for side in (other, base))
    row = Row(f"{name}: density, all layers", shape, mine, "share of pairs", "CPU", theirs)
    found = [judged(row, f"within {_DENSITY:g}", met=abs(mine - theirs) <= _DENSITY)]
    return found + _points(name, shape, base, other) + _followed(name, shape, base, other)


def _points(name: str, shape: str, base: Sequence[Cell], other: Sequence[Cell]) -> list[Row]:
    """Mean over tasks, and how many answers are alike to the letter."""
    scores: tuple[dict[str, list[float]], ...] = ({}, {})
    for into, side in zip(scores, (base, other), strict=True):
        for cell in side:
            for task, values in cell.scores.items():
                into.setdefault(task, []).extend(100 * value for value in values)
    if not scores[0]:
        return []
    apart, doubt = paired({task: list(zip(values, scores[1][task], strict=True)) for task, values in scores[0].items()})
    theirs, mine = (fmean(fmean(values) for values in side.values()) for side in scores)
    words = f"{name}: points, mean over tasks, standard error of the difference {doubt:.2f}"
    row = judged(
        Row(words, shape, mine, "points", "CPU", theirs), "within the standard error", met=abs(apart) <= doubt + 1e-9
    )
    answers = [
        one == two
        for own, true in zip(other, base, strict=True)
        for one, two in zip(own.answers, true.answers, strict=True)
    ]
    return [row, Row(f"{name}: answers alike", f"{shape}, {len(answers)} questions", fmean(answers), "share")]


def _followed(name: str, shape: str, base: Sequence[Cell], other: Sequence[Cell]) -> list[Row]:
    """Perplexity and divergence on long documents, beside dense attention of the same device."""
    sides = [[cell.reading for cell in side if cell.reading] for side in (other, base)]
    if not sides[0]:
        return []
    dense = name == "dense"
    mine, theirs = (
        math.exp(fmean(each["loss"] - (0.0 if dense else each["dense_loss"]) for each in side)) for side in sides
    )
    unit = "of the text" if dense else "times the device's dense"
    row = judged(
        Row(f"{name}: perplexity", shape, mine, unit, "CPU", theirs), f"within {100 * _PERPLEXITY:g} %",
        met=abs(mine / theirs - 1) <= _PERPLEXITY,
    )  # fmt: skip
    if dense:
        return [row]
    mine, theirs = (fmean(each["divergence"] for each in side) for side in sides)
    return [row, Row(f"{name}: divergence from the device's dense", shape, mine, "nats", "CPU", theirs)]
