"""What a suite has found so far: one line of JSON a cell, written as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsity_rpc.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Cell:
    """One contender on one case.

    Attributes:
        contender: its name.
        digest: of everything that the result depends on besides case and length; another digest is another result.
        family: what kind of case.
        case: digest of the case; a generator that changed makes another.
        length: tokens, as asked for.
        sample: number of the case.
        density: attended over causal pairs in prefill, all layers.
        coverage: mean estimated coverage in prefill.
        seconds: wall clock of the prefill.
        scores: by task, the score of each question, in [0, 1].
        answers: what was answered, in the order of the questions.
        reading: the figures of :class:`sparsity_quality.subjects.reading.Followed`; empty for cases with questions.
    """

    contender: str
    digest: str
    family: str
    case: str
    length: int
    sample: int
    density: float
    coverage: float
    seconds: float
    scores: dict[str, list[float]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    reading: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells cells apart."""
        return self.digest, self.case, self.length


class Results:
    """The cells of a file, and new ones appended to it.

    Raises:
        ConfigurationError: when a line before the last is not a cell.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[tuple[str, str, int], Cell] = {}
        if not path.exists():
            return
        whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._add(Cell(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ConfigurationError(f"{path}: line {number} is not a result; delete it or the file") from error
        if torn:
            # A run that was killed while it wrote: that cell is measured again.
            os.truncate(path, len((whole + "\n").encode()) if whole else 0)

    def _add(self, cell: Cell) -> None:
        self._cells[cell.key] = cell

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key in self._cells

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    def __getitem__(self, key: tuple[str, str, int]) -> Cell:
        return self._cells[key]

    def append(self, cell: Cell) -> None:
        """Adds a cell, and writes it through to the disk."""
        line: dict[str, Any] = asdict(cell)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._add(cell)
