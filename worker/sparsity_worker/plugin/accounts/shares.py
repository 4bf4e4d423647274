"""Which tokens of a pass count: each does once, though the engine may take a request back and read its tokens anew."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from sparse_kernels.stats import causal_pairs

PREFILL: Final = 0
DECODE: Final = 1
FIELDS: Final = 4
"""Per layer and phase: attended pairs, causal pairs, coverage summed over rows, rows."""

Shares = NDArray[np.float64]
"""``[2 phases, FIELDS]``: what each phase is charged of a pass over one request; together 1 where all of it counts."""


def shares_of(length: int, new: int, known: int, prompt: int) -> Shares:
    """The newest tokens of a request, without those that an earlier pass attended.

    Tokens of the prompt are prefill and generated ones decode, whichever pass attends them. Of a pass that counts in
    part its pairs are told as those of all its tokens are: kernels add them up over more than one token.

    Args:
        length: tokens in the cache, the new ones included.
        new: new tokens.
        known: tokens that earlier passes attended.
        prompt: tokens of the prompt; 0 where all of the new ones were generated.
    """
    shares, first = np.zeros((2, FIELDS)), length - new
    begin = min(max(first, known), length)
    split = min(max(begin, prompt), length)
    for phase, start, end in ((PREFILL, begin, split), (DECODE, split, length)):
        if start < end:
            shares[phase, :2] = causal_pairs(end - start, start) / causal_pairs(new, first)
            shares[phase, 2:] = (end - start) / new
    return shares
