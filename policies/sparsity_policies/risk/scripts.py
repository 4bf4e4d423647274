"""The script that a part of a text is written in: words of some are known better than those of others."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import Codes, Places

# First and last letter of scripts that margins are read otherwise in; what is in none of them is in the first.
SCRIPTS: Final = {
    "latin": (0, 0),
    "cyrillic": (0x0400, 0x052F),
    "arabic": (0x0600, 0x06FF),
    "devanagari": (0x0900, 0x097F),
    "unspaced": (0x3040, 0x9FFF),
}
# Share of the letters of a window that tells its script.
_ENOUGH: Final = 4


class Line(NamedTuple):
    """Log odds by the odds that a model of all scripts gives: ``slope * odds + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0


def scripts_of(codes: Codes, starts: Places, ends: Places) -> NDArray[np.int64]:
    """The number in ``SCRIPTS`` of each window's script, (windows,)."""
    found = np.zeros(len(starts), np.int64)
    if not len(codes) or codes.max() < SCRIPTS["cyrillic"][0]:
        return found
    for number, (first, last) in enumerate(SCRIPTS.values()):
        if number:
            sums = np.concatenate(([0], np.cumsum((codes >= first) & (codes <= last))))
            found[(sums[ends] - sums[starts]) * _ENOUGH > ends - starts] = number
    return found
