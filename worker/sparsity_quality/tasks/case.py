"""A context with questions about it, and how contexts of an exact length are put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from sparsity_rpc.errors import ConfigurationError

Encode = Callable[[str], list[int]]
# Left free at the end of a length for a question and its answer: one query tile of the shipped profiles.
RESERVE = 128


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask.

    Attributes:
        task: the task that its score counts for.
        prompt: what follows the context; the model writes on.
        answers: what is asked for; what several mean is the metric's to say.
        metric: a name of :data:`sparsity_quality.tasks.metrics.METRICS`.
        new_tokens: tokens to generate at most.
        stop: what ends an answer, besides the model's end of text.
    """

    task: str
    prompt: str
    answers: tuple[str, ...]
    metric: str
    new_tokens: int
    stop: str = "\n"

    def __post_init__(self) -> None:
        if not self.answers or not all(self.answers):
            raise ConfigurationError("answers: must hold at least one text, and no empty one")
        if self.new_tokens < 1:
            raise ConfigurationError("new_tokens: must be at least 1")


@dataclass(frozen=True, slots=True)
class Case:
    """One context and everything that is asked of it.

    Attributes:
        name: unique within a suite.
        tokens: the context.
        questions: asked one by one, each right after the context.
    """

    name: str
    tokens: tuple[int, ...]
    questions: tuple[Question, ...]

    @property
    def digest(self) -> str:
        """Of all that is read and asked."""
        return hashlib.sha256(repr((self.tokens, self.questions)).encode()).hexdigest()[:12]


def haystack(
    filler: Iterable[str], needles: Sequence[str], tokens: int, encode: Encode, rng: Random, joint: str = "\n"
) -> tuple[int, ...]:
    """Exactly ``tokens`` ids: the needles in their order, each whole, at random depths among pieces of filler.

    Raises:
        ConfigurationError: when the needles alone are longer, or the filler runs out.
    """
    inserted = [encode(needle + joint) for needle in needles]
    room = tokens - sum(map(len, inserted))
    if room < 0:
        raise ConfigurationError(f"lengths: {tokens} tokens are too few for this task, which needs {tokens - room}")
    pieces: list[list[int]] = []
    held = 0
    for text in filler:
        if held >= room:
            break
        pieces.append(encode(text + joint)[: room - held])
        held += len(pieces[-1])
    if held < room:
        raise ConfigurationError(f"lengths: {tokens} tokens are more than the text at hand can fill")
    # A needle comes before a piece, so none is the last thing that was read.
    places = sorted(rng.randrange(max(len(pieces), 1)) for _ in inserted)
    found: list[int] = []
    at = iter(zip(places, inserted, strict=True))
    following = next(at, None)
    for number, piece in enumerate(pieces or [[]]):
        while following is not None and following[0] == number:
            found += following[1]
            following = next(at, None)
        found += piece
    return tuple(found)


def cut(text: str, stop: str) -> str:
    """The text up to ``stop``, of which one at its very beginning does not count."""
    lead = len(text) - len(text.lstrip())
    at = text.find(stop, lead)
    return text if at < 0 else text[:at]
