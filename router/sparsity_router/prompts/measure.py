"""Counts a prompt's tokens as closely as its decision needs, which is mostly not at all."""

from __future__ import annotations

from typing import NamedTuple

from sparsity_policies.decisions.decide import hangs_on_length
from sparsity_policies.model import Signals
from sparsity_rpc.errors import InvalidRequestError

from sparsity_router.prompts.lengths import SAMPLED_CHARACTERS, Interval, LengthModel
from sparsity_router.prompts.signals import Resolved
from sparsity_router.prompts.tokens import ModelTokenizer


class EncodedPrompt(NamedTuple):
    """A prompt as a worker takes it: in token ids, or as text where they were not needed to decide.

    Attributes:
        interval: tokens, at least and at most.
        ids: token ids; empty where they were not counted.
        text: what is to be tokenized.
        special: whether the model puts something around it.
    """

    interval: Interval
    ids: list[int]
    text: str = ""
    special: bool = False


class Measured(NamedTuple):
    """A prompt with its length, and the signals that they give."""

    prompt: EncodedPrompt
    signals: Signals


class Measure:
    """Lengths of prompts by one model's tokenizer."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._lengths = LengthModel(tokenizer)

    def by_size(self, request: Resolved, *, exact: bool) -> Measured | None:
        """The length where the caller or the prompt's size alone tells it closely enough; None where they do not.

        Raises:
            InvalidRequestError: when the model does not take as many tokens, or there are none.
        """
        opened = request.scanned.opened
        if opened.ids:
            return self._counted(request, opened.ids)
        return None if exact else self._within(request, self._lengths.bound(opened.text, opened.size))

    def by_text(self, request: Resolved, *, exact: bool) -> Measured:
        """The length from a sample of the text where that will do, else counted.

        Raises:
            InvalidRequestError: when the model does not take as many tokens, or there are none.
        """
        opened = request.scanned.opened
        if len(opened.text) >= SAMPLED_CHARACTERS:
            interval = self._lengths.sample(opened.text, opened.size)
            if not exact and (sampled := self._within(request, interval)) is not None:
                return sampled
            if interval.low > 2 * self._tokenizer.context_length:
                # Counting takes a hundred times the prompt's memory; of one this long it would change nothing.
                raise self._too_long(f"about {(interval.low + interval.high) // 2}")
        return self._counted(request, self._tokenizer.encode(opened.text, special=opened.special))

    def _within(self, request: Resolved, interval: Interval) -> Measured | None:
        """The request with an interval for a length, where the decision is the same all over it."""
        signals, opened = request.signals(interval), request.scanned.opened
        if interval.high >= self._tokenizer.context_length or hangs_on_length(signals, request.snapshot):
            return None
        return Measured(EncodedPrompt(interval, [], opened.text, opened.special), signals)

    def _counted(self, request: Resolved, ids: list[int]) -> Measured:
        """The request with its exact token count."""
        count = len(ids)
        if not count:
            raise InvalidRequestError.of("prompt", "is empty once tokenized")
        if count >= self._tokenizer.context_length:
            raise self._too_long(str(count))
        interval = Interval(count, count)
        return Measured(EncodedPrompt(interval, ids), request.signals(interval))

    def _too_long(self, count: str) -> InvalidRequestError:
        return InvalidRequestError.too_long("prompt", f"has {count} tokens", self._tokenizer.context_length)
