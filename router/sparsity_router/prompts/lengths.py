"""How many tokens a prompt has, to within an interval, without tokenizing all of it.

Most decisions hold over a wide range of lengths, and tokenizing costs more than all else that a router does. The
interval is calibrated, not proved: the worker, which tokenizes anyway, refuses a count outside of it, and the router
then counts exactly. So a wrong interval costs time, and never attention.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from sparsity_router.prompts.corpus import excerpt
from sparsity_router.prompts.tokens import ModelTokenizer

# Text of other kinds than the calibration's lies this much further out.
_MARGIN = 1.5
_CALIBRATIONS = 24
_CALIBRATION_CHARACTERS = 2048
_SLICES = 16
_SLICE_CHARACTERS = 512
# Shorter prompts are counted exactly at about the price of a sample.
SAMPLED_CHARACTERS = 4 * _SLICES * _SLICE_CHARACTERS
_DEVIATIONS = 4.0
_LEAST_SPREAD = 0.05
# What a model may put around plain text.
_SPECIAL_TOKENS = 4


class Interval(NamedTuple):
    """Tokens, at least and at most."""

    low: int
    high: int


class LengthModel:
    """Bytes per token of one tokenizer."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        rates = []
        for number in range(_CALIBRATIONS):
            text = excerpt(_CALIBRATION_CHARACTERS, 17 * number * _CALIBRATION_CHARACTERS)
            rates.append(len(text.encode()) / len(tokenizer.encode(text, special=False)))
        self._fewest = max(min(rates) / _MARGIN, 1.0)
        self._most = max(rates) * _MARGIN

    def bound(self, text: str, size: int) -> Interval:
        """The interval of a prompt of ``size`` bytes by its size alone.

        Text beyond ASCII may take a token a byte.
        """
        fewest = self._fewest if size == len(text) else 1.0
        return Interval(max(int(size / self._most), 1), math.ceil(size / fewest) + _SPECIAL_TOKENS)

    def sample(self, text: str, size: int) -> Interval:
        """A narrower interval, from slices spread evenly over a prompt of at least ``SAMPLED_CHARACTERS``."""
        step = (len(text) - _SLICE_CHARACTERS) / (_SLICES - 1)
        slices = [text[int(i * step) : int(i * step) + _SLICE_CHARACTERS] for i in range(_SLICES)]
        counts = [len(self._tokenizer.encode(piece, special=False)) for piece in slices]
        mean = statistics.fmean(counts)
        error = statistics.stdev(counts) / math.sqrt(_SLICES) / mean
        spread = max(_DEVIATIONS * error, _LEAST_SPREAD)
        tokens = mean * len(text) / _SLICE_CHARACTERS
        bound = self.bound(text, size)
        low = min(max(int(tokens * (1 - spread)), bound.low), bound.high)
        return Interval(low, max(min(math.ceil(tokens * (1 + spread)), bound.high), low))
