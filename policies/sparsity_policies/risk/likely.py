"""Windows that are likely of a domain, for somebody to read more closely: each with the paragraph that it stands in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.matching.folding import folded
from sparsity_policies.risk.features import Codes
from sparsity_policies.risk.windows import Places

# Characters of what is read of a paragraph at most.
REACH: Final = 400
# Windows that are looked through, the most likely first: a text of one paragraph a million times takes no longer.
_LOOKED: Final = 512
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*\n")


class Likely(NamedTuple):
    """A part of a text that may be of a domain.

    Attributes:
        start: its first character in the text as it is read.
        end: the one behind its last.
        text: of it, with its capital letters; no other part has the same.
        odds: by domain, log odds of its most likely window.
    """

    start: int
    end: int
    text: str
    odds: Mapping[str, float]


class Chosen(NamedTuple):
    """What was chosen of a text's windows.

    Attributes:
        parts: the most likely first.
        left: which windows are in none of them, (windows,).
    """

    parts: tuple[Likely, ...]
    left: NDArray[np.bool_]


def choose(
    text: str,
    codes: Codes,
    windows: tuple[Places, Places],
    odds: NDArray[np.float64],
    domains: Sequence[str],
    most: int,
    least: float,
) -> Chosen:
    """The parts of a text that are most likely of any domain.

    Args:
        text: as it was written.
        codes: of it.
        windows: where they begin and end.
        odds: of each, by domain: (windows, domains).
        domains: their names.
        most: parts at most.
        least: log odds below which a window is not looked at.
    """
    best = odds.max(axis=1)
    left = np.ones(len(best), np.bool_)
    found: dict[str, tuple[int, int, NDArray[np.float64]]] = {}
    written = ""
    for number in np.argsort(-best, kind="stable")[:_LOOKED].tolist():
        if best[number] < least:
            break
        written = written or _written(text, codes)
        start, end = _around(written, int(windows[0][number]), int(windows[1][number]))
        part = written[start:end]
        if part not in found:
            if len(found) == most:
                continue
            found[part] = (start, end, odds[number])
        start, end, known = found[part]
        found[part] = (start, end, np.maximum(known, odds[number]))
        left[number] = False
    parts = tuple(
        Likely(start, end, part, dict(zip(domains, known.tolist(), strict=True)))
        for part, (start, end, known) in found.items()
    )
    return Chosen(parts, left)


def _written(text: str, codes: Codes) -> str:
    """The text as it is read, with its capital letters where that has every letter in its place."""
    read = folded(text)
    return read if len(read) == len(codes) else codes.tobytes().decode("utf-32-le", "surrogatepass")


def _around(text: str, start: int, end: int) -> tuple[int, int]:
    """The paragraph that a window is in, or as much of it as is read; the window itself where it is longer."""
    # A window goes on up to the next one, line ends and all.
    end = start + len(text[start:end].rstrip())
    room = max(REACH - (end - start), 0)
    before, after = text[max(start - room, 0) : start], text[end : end + room]
    breaks = [match.end() for match in _BLANK_LINE.finditer(before)]
    first, stop = (breaks[-1] if breaks else 0), _BLANK_LINE.search(after)
    before, after = before[first:], after[: stop.start()] if stop else after
    # Of a paragraph that is too long what is before and behind, half each where both are.
    behind = min(len(after), max(room - len(before), room // 2))
    ahead = min(len(before), room - behind)
    return start - ahead, end + behind
