"""Which cases a suite has at a length: generated ones, a team's own, and documents to follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_rpc.errors import ConfigurationError

from sparsity_quality.tasks import FAMILIES, corpus, generate
from sparsity_quality.tasks.case import Case, Encode, Question
from sparsity_quality.tasks.metrics import METRICS

DOCUMENTS = "documents"
# Scored by the model's own probabilities, which a worker does not tell.
FAMILY_NAMES = (*FAMILIES, DOCUMENTS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure.

    Attributes:
        lengths: tokens, ascending.
        families: names of :data:`FAMILY_NAMES`.
        samples: cases of each family at each length.
        documents: of them to follow at each length.
        seed: of the generated cases.
        split: a name of :data:`sparsity_quality.tasks.corpus.SPLITS`.

    Raises:
        ConfigurationError: naming what is out of range.
    """

    lengths: tuple[int, ...]
    families: tuple[str, ...] = FAMILY_NAMES
    samples: int = 1
    documents: int = 1
    seed: int = 1
    split: str = "held-out"

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 512:
            raise ConfigurationError("--lengths: must be 512 tokens or more each")
        for name in self.families:
            if name not in FAMILY_NAMES:
                raise ConfigurationError(f"--families: must be of {', '.join(FAMILY_NAMES)}, not {name!r}")
        if self.samples < 1:
            raise ConfigurationError("--samples: must be at least 1")
        if self.documents < 1:
            raise ConfigurationError("--documents: must be at least 1")


def cases_at(wanted: Wanted, length: int, encode: Encode) -> list[tuple[int, Case]]:
    """The generated cases with their sample numbers; a case without questions is a document to follow."""
    found = []
    for family in wanted.families:
        if family == DOCUMENTS:
            found += [(number, _document(wanted, length, number, encode)) for number in range(wanted.documents)]
            continue
        for sample in range(wanted.samples):
            found.append((sample, generate(family, wanted.split, wanted.seed, sample, length, encode)))
    return found


def _document(wanted: Wanted, length: int, sample: int, encode: Encode) -> Case:
    texts = corpus.documents(wanted.split)
    ids = encode(texts[sample % len(texts)])
    start = length * (sample // len(texts))
    if len(ids) < start + length:
        raise ConfigurationError(
            f"--documents: the text at hand ends before number {sample + 1} of {length} tokens; ask for fewer"
        )
    return Case(DOCUMENTS, tuple(ids[start : start + length]), ())


def own_cases(path: Path, encode: Encode, limit: int) -> dict[int, list[tuple[int, Case]]]:
    """A team's cases by length: a file with one JSON object a line, with the fields of the README.

    Lines with the same context are one case. A case counts for the power of two that its context fits into.

    Raises:
        ConfigurationError: naming file, line and field.
    """
    contexts: dict[str, list[Question]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--data: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            context, question = _line(line, f"{path}: line {number}")
            contexts.setdefault(context, []).append(question)
    found: dict[int, list[tuple[int, Case]]] = {}
    for context, questions in contexts.items():
        tokens = encode(context)
        longest = max(len(encode(question.prompt)) + question.new_tokens for question in questions)
        if len(tokens) + longest > limit:
            raise ConfigurationError(
                f"--data: {path}: a context of {len(tokens)} tokens and its question exceed {limit} positions"
            )
        length = 512
        while length < len(tokens) + longest:
            length *= 2
        cases = found.setdefault(min(length, limit), [])
        cases.append((len(cases), Case(path.stem, tuple(tokens), tuple(questions))))
    if not found:
        raise ConfigurationError(f"--data: {path} holds no case")
    return found


_FIELDS: Mapping[str, tuple[type, bool]] = {
    "context": (str, True),
    "prompt": (str, True),
    "answers": (list, True),
    "task": (str, False),
    "metric": (str, False),
    "new_tokens": (int, False),
    "stop": (str, False),
}


def _line(line: str, at: str) -> tuple[str, Question]:
    try:
        given: Any = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{at}: is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigurationError(f"{at}: must be an object")
    for name in sorted(given.keys() - _FIELDS.keys()):
        raise ConfigurationError(f"{at}: {name}: is not a field; fields are {', '.join(_FIELDS)}")
    for name, (kind, needed) in _FIELDS.items():
        if (needed or name in given) and not isinstance(given.get(name), kind):
            raise ConfigurationError(f"{at}: {name}: must be of type {kind.__name__}")
    answers: Sequence[Any] = given["answers"]
    if not all(isinstance(answer, str) for answer in answers):
        raise ConfigurationError(f"{at}: answers: must be texts")
    metric = given.get("metric", "contains")
    if metric not in METRICS:
        raise ConfigurationError(f"{at}: metric: must be one of {', '.join(METRICS)}, not {metric!r}")
    try:
        question = Question(
            given.get("task", "own"), given["prompt"], tuple(answers), metric, given.get("new_tokens", 32),
            given.get("stop", "\n"),
        )  # fmt: skip
    except ConfigurationError as error:
        raise ConfigurationError(f"{at}: {error}") from error
    return given["context"], question
