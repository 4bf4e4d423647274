"""Where a text is cut into windows: at paragraphs, lines and sentences: what is of a domain mostly is one of these.

A window that reaches into a second paragraph is of two things, and near misses together look like more than each.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import Codes


class _Scale(NamedTuple):
    """Lengths in characters.

    Attributes:
        least: of a window: a shorter one goes on into what follows.
        cell: each has one end of a sentence at most, and no unit is longer.
        sentences: a longer line is cut at sentences.
        lines: a longer paragraph is cut at lines; shorter ones are wrapped.
    """

    least: int
    cell: int
    sentences: int
    lines: int


_SPACED: Final = _Scale(32, 128, 192, 512)
# Of a script that writes a word in a character or two.
_IDEOGRAPHIC_SCALE: Final = _Scale(16, 64, 96, 192)
_IDEOGRAPHIC: Final = 0x2E80
# A shorter text is a window, too.
_WHOLE: Final = 640
# Full stops and question marks of the scripts that the shipped texts are written in.
_ENDS: Final = ".!?\u3002\uff01\uff1f\u0964\u061f\u06d4"
_LINE, _BLANK, _END = 1, 2, 3

Places = NDArray[np.int64]


def windows_of(codes: Codes) -> tuple[Places, Places, Places]:
    """Cuts a text.

    Returns:
        where windows begin, where they end, and the starts of the units that they consist of; no unit is longer than a
        cell, and cells divide what the features come in.
    """
    size = len(codes)
    scale = _IDEOGRAPHIC_SCALE if np.count_nonzero(codes >= _IDEOGRAPHIC) * 4 > size else _SPACED
    hard, cuts = _cuts(codes, scale)
    edges = np.append(cuts, size)
    ends = edges[np.minimum(np.searchsorted(edges, cuts + scale.least), len(cuts))]
    # A sentence means more with the one behind it.
    paired = np.flatnonzero(hard[np.searchsorted(hard, cuts[1:]).clip(max=len(hard) - 1)] != cuts[1:])
    starts, ends = np.concatenate((cuts, cuts[paired])), np.concatenate((ends, edges[paired + 2]))
    if len(cuts) > 1 and size < _WHOLE:
        starts, ends = np.append(starts, 0), np.append(ends, size)
    # The last few letters alone say nothing.
    enough = (ends - starts >= scale.least) | (starts == 0) | (ends - starts == size)
    if not enough[len(cuts) - 1]:
        starts[len(cuts) - 1] = max(size - scale.least, 0)
        enough[len(cuts) - 1] = True
    starts, ends = starts[enough], ends[enough]
    return starts, ends, np.unique(np.concatenate((cuts, starts, np.arange(0, size, scale.cell))))


def _cuts(codes: Codes, scale: _Scale) -> tuple[Places, Places]:
    """Where lines and paragraphs end, and all starts of segments, the first of them 0."""
    size = len(codes)
    kinds = _kinds().take(np.minimum(codes, 0xFFFF))
    ends = np.flatnonzero(kinds == _LINE) + 1
    inner = ends[ends < size]
    # Behind a line without a letter a paragraph begins.
    letters = np.add.reduceat((kinds == 0) | (kinds == _END), inner, dtype=np.int64) if len(inner) else inner
    paragraphs = inner[1:][(letters[:-1] == 0) & (letters[1:] > 0)]
    hard = _finer(_finer(np.zeros(1, np.int64), paragraphs, 0, size), inner, scale.lines, size)
    marks = np.where(kinds == _END, np.arange(1, size + 1), 0)
    sentences = np.maximum.reduceat(marks, np.arange(0, size, scale.cell)).astype(np.int64)
    cuts = _finer(hard, sentences, scale.sentences, size)
    return hard, _finer(cuts, np.arange(0, size, scale.cell), scale.sentences, size)


@cache
def _kinds() -> NDArray[np.uint8]:
    """What each code point of the basic plane is to the cuts; 0 for most."""
    found = np.zeros(0x10000, np.uint8)
    for kind, signs in ((_LINE, "\n"), (_BLANK, " \t\r"), (_END, _ENDS)):
        found[[ord(sign) for sign in signs]] = kind
    return found


def _finer(cuts: Places, others: Places, longest: int, size: int) -> Places:
    """The cuts, and of others those within segments that are longer."""
    others = others[(others > 0) & (others < size)]
    lengths = np.diff(np.append(cuts, size))
    if not len(others) or lengths.max() <= longest:
        return cuts
    within = np.searchsorted(cuts, others, side="right") - 1
    return np.union1d(cuts, others[lengths[within] > longest])
