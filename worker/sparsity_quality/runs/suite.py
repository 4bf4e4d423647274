"""Runs subjects over cases, a cell at a time, and skips what is known already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Protocol

import torch

from sparsity_quality.runs.results import Cell, Results
from sparsity_quality.subjects.contenders import Contender
from sparsity_quality.subjects.model import DENSE, LocalModel
from sparsity_quality.subjects.reading import follow
from sparsity_quality.tasks.case import Case
from sparsity_quality.tasks.metrics import METRICS

Cases = Mapping[int, Sequence[tuple[int, Case]]]


class Subject(Protocol):
    """Something that cases are put to."""

    @property
    def name(self) -> str:
        """As reports call it."""

    @property
    def kind(self) -> str:
        """As :attr:`sparsity_quality.subjects.contenders.Contender.kind`."""

    @property
    def digest(self) -> str:
        """Of everything that a cell depends on besides the case."""

    @property
    def families(self) -> Collection[str] | None:
        """The kinds of cases that it is put to; None for all."""

    def measure(self, case: Case, blank: Cell) -> Cell:
        """The blank with what was found."""


Lineup = Callable[[int], Sequence[Subject]]


def run(cases: Cases, lineup: Lineup, results: Results, done: Callable[[int, int, str], None]) -> None:
    """Measures every cell that ``results`` does not hold.

    Args:
        cases: by length.
        lineup: the subjects at a length, dense first.
        results: what is known, and where to put what is found.
        done: told how many of how many cells are known, and what is at work.
    """
    lines = {length: lineup(length) for length in cases}
    work = [
        (length, sample, case, subject)
        for length, each in sorted(cases.items())
        for sample, case in each
        for subject in lines[length]
        if subject.families is None or case.name in subject.families
    ]
    for number, (length, sample, case, subject) in enumerate(work):
        done(number, len(work), f"{length} tokens, {case.name} {sample + 1}, {subject.name}")
        blank = Cell(subject.name, subject.digest, case.name, case.digest, length, sample, 1.0, 1.0, 0.0)
        if blank.key not in results:
            results.append(subject.measure(case, blank))
    done(len(work), len(work), "done")


class Local:
    """A contender on a model in this process."""

    def __init__(
        self,
        contender: Contender,
        model: LocalModel,
        dense: DenseReading,
        families: Collection[str] | None = None,
    ) -> None:
        self.name, self.kind, self.families = contender.name, contender.kind, families
        of = f"{contender.digest}/{model.path.name}/{model.device.type}"
        self.digest = hashlib.sha256(of.encode()).hexdigest()[:16]
        self._attention, self._model, self._dense = contender.attention, model, dense

    def measure(self, case: Case, blank: Cell) -> Cell:
        """Asks the questions, or follows the document where there are none."""
        if case.questions:
            return self._asked(case, blank)
        dense = self._dense.of(case)
        hidden, read = self._model.hidden(case.tokens, self._attention)
        found = follow(self._model, case.tokens, hidden, dense)
        true = follow(self._model, case.tokens, dense, dense)
        reading = asdict(found) | {"dense_loss": true.loss}
        return replace(blank, density=read.density, coverage=read.coverage, seconds=read.seconds, reading=reading)

    def _asked(self, case: Case, blank: Cell) -> Cell:
        conversation = self._model.open(case.tokens, self._attention)
        questions = case.questions
        answers = [conversation.ask(each.prompt, each.new_tokens, each.stop) for each in questions]
        read = conversation.read
        return replace(
            blank, density=read.density, coverage=read.coverage, seconds=read.seconds,
            scores=scored(case, answers), answers=answers,
        )  # fmt: skip


class DenseReading:
    """Dense attention's hidden states of the document that was followed last."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._last: tuple[Case, torch.Tensor] | None = None

    def of(self, case: Case) -> torch.Tensor:
        """``[T, hidden]``."""
        if self._last is None or self._last[0] is not case:
            self._last = case, self._model.hidden(case.tokens, DENSE)[0]
        return self._last[1]


def scored(case: Case, answers: Sequence[str]) -> dict[str, list[float]]:
    """The score of each answer, by task."""
    scores: dict[str, list[float]] = {}
    for question, text in zip(case.questions, answers, strict=True):
        scores.setdefault(question.task, []).append(METRICS[question.metric](text, question.answers))
    return scores
