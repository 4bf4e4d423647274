"""Where a text is cut into windows: at paragraphs and sentences, because what is of a domain mostly is one of these."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import Codes

# About as long as a sentence or two. Each cell of the text has one cut at most, so that short lines stay together.
_CELL: Final = 128
# Of a script that writes a word in a character or two.
_IDEOGRAPHIC_CELL: Final = 64
_IDEOGRAPHIC: Final = 0x2E80
# A window is of one segment, or of this many at most.
_SPAN: Final = 3
# A shorter text is a window, too.
_WHOLE: Final = 640
_LINE: Final = ord("\n")
# Full stops and question marks of the scripts that the shipped texts are written in.
_ENDS: Final = np.array([ord(mark) for mark in ".!?\u3002\uff01\uff1f\u0964\u061f\u06d4"], np.uint32)

Places = NDArray[np.int64]


def windows_of(codes: Codes) -> tuple[Places, Places, Places]:
    """Cuts a text.

    Returns:
        where windows begin, where they end, and the starts of the units that they consist of; no unit is longer than a
        cell, and cells divide what the features come in.
    """
    size = len(codes)
    cell = _IDEOGRAPHIC_CELL if np.count_nonzero(codes >= _IDEOGRAPHIC) * 4 > size else _CELL
    cuts = _cuts(codes, cell)
    units = np.union1d(cuts, np.arange(0, size, cell))
    edges = np.append(cuts, size)
    spans = {*range(1, min(_SPAN, len(cuts)) + 1), *((len(cuts),) if size < _WHOLE else ())}
    starts = np.concatenate([edges[: len(edges) - span] for span in sorted(spans)])
    ends = np.concatenate([edges[span:] for span in sorted(spans)])
    # Of a few words alone nobody can tell, unless there is no more.
    enough = (ends - starts >= cell) | (starts == 0) & (ends == size)
    return starts[enough], ends[enough], units


def _cuts(codes: Codes, cell: int) -> Places:
    """Starts of segments, the first of them 0."""
    lines, ends = _last(codes == _LINE, cell), _last(np.isin(codes, _ENDS), cell)
    # Sentences cut where no line ends nearby, and a cell's beginning does where there is neither.
    found = np.where(lines > 0, lines, np.where(_near(lines > 0), 0, ends))
    forced = np.where(_near(found > 0), 0, np.arange(len(found)) * cell)
    forced[forced > len(codes) - cell] = 0
    cuts = np.where(found > 0, found, forced)
    cuts = cuts[(cuts > 0) & (cuts < len(codes))]
    return np.concatenate((np.zeros(1, np.int64), cuts))


def _last(marks: NDArray[np.bool_], cell: int) -> Places:
    """In each cell the place behind the last mark; 0 where there is none."""
    places = np.where(marks, np.arange(1, len(marks) + 1), 0)
    return np.maximum.reduceat(places, np.arange(0, len(marks), cell)).astype(np.int64)


def _near(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a cell or one beside it is marked."""
    found = marks.copy()
    found[1:] |= marks[:-1]
    found[:-1] |= marks[1:]
    return found
