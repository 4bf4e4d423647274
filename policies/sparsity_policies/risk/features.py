"""A text as numbers of hashed n-grams (feature hashing, Weinberger et al., ICML 2009), in passes over whole arrays.

Letters are counted as code points, so that an n-gram spans as much of a Hindi word as of an English one, and
positions are those of the text. Each n-gram belongs to the place where it begins: a window's features are those that
begin in it. Words of the lexicon have a row each behind those of hashes: the longest parts that a word is made of, and
of scripts without spaces every run of letters that is one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.matching.folding import folded
from sparsity_policies.risk.lexicon import Keys, lexicon

ROW_BITS: Final = 17
ROWS: Final = 2**ROW_BITS
_ORDERS: Final = (2, 3, 5)
# A longer word is told by its beginning. What follows a block is read as far, so that none is cut.
_LONGEST_WORD: Final = 48
# Small enough to stay in the processor's caches from one pass to the next.
_BLOCK: Final = 8192
_STEP = np.uint32(0x9E3779B1)
_MIX = np.uint32(0x85EBCA6B)
_BASE = 0x9E3779B97F4A7C15
_SHIFT = np.uint32(32 - ROW_BITS)
_WIDE_SHIFT = np.uint64(64 - ROW_BITS)
# Of a pair of words the first one's hash is told apart from the second's.
_FIRST_WORD = np.uint64(0xC2B2AE3D27D4EB4F)

# Letters of the parts by which a word is known that is not in the lexicon itself, and how many parts are looked for.
_PARTS: Final = np.arange(12, 1, -1)
_ROUNDS: Final = 3
# Of what goes on with a word, told apart from a word.
_INNER = np.uint64(0x94D049BB133111EB)
# Kana and ideographs, which are written without spaces, and letters of their longest word.
_FIRST_UNSPACED, _LAST_UNSPACED = 0x3040, 0x9FFF
_LONGEST_UNSPACED: Final = 4

Codes = NDArray[np.uint32]
Rows = NDArray[np.uint32]
Places = NDArray[np.int64]


class Placed(NamedTuple):
    """Features of a block of a text.

    Attributes:
        start: of the block in the text.
        length: characters of it.
        dense: a row for each character of the block and each order of n-grams.
        words: rows of words, of pairs of words and of what the lexicon has, in order of ``places``.
        places: where they begin in the block.
    """

    start: int
    length: int
    dense: list[Rows]
    words: Rows
    places: Places


def codes_of(text: str) -> Codes:
    """The code points of a text in the form that it is read in: folded, and in lower case.

    That form may be longer or shorter than the text; halves of surrogate pairs stay what they are.
    """
    read = folded(text).lower()
    return np.frombuffer(read.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def blocks(codes: Codes) -> Iterator[Placed]:
    """Features of a text, a block at a time; memory does not grow with the text."""
    size = len(codes)
    # An n-gram may reach beyond the end: what is there is nothing.
    padded = np.concatenate((codes, np.zeros(_LONGEST_WORD, np.uint32)))
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        seen = padded[start : start + length + _LONGEST_WORD]
        before = int(codes[start - 1]) if start else 0
        running = _running(seen, max(_ORDERS))
        (words, places), (unspaced, there) = _words(seen, length, before), _unspaced(seen, running, length)
        rows, where = np.concatenate((words, unspaced)), np.concatenate((places, there))
        yield Placed(start, length, _ngrams(running, length), rows, where)


def rows_of(codes: Codes) -> Rows:
    """All features of a text, in no order."""
    found = [rows for block in blocks(codes) for rows in (*block.dense, block.words)]
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


def width() -> int:
    """Rows in all: those of hashes, and behind them one for each word of the lexicon."""
    return ROWS + len(lexicon())


def key_of(word: str, inner: bool) -> int:
    """By which the lexicon has a word, or what goes on with one."""
    codes = codes_of(word)
    padded = np.concatenate((codes, np.zeros(_LONGEST_WORD, np.uint32)))
    if len(codes) and _is_unspaced(codes).all():
        return int(_unspaced_keys(_running(padded, len(codes))[-1], len(codes))[0])
    key = int(_Hashes(padded)(np.zeros(1, np.int64), np.array([len(codes)]))[0])
    return key ^ int(_INNER) if inner else key


def _running(seen: Codes, longest: int) -> list[Codes]:
    """Hashes of the n-grams that begin at each place, by their number of letters from one up."""
    single = seen * _STEP
    found = [single]
    for order in range(2, longest + 1):
        last = found[-1][:-1]
        found.append((last ^ (last >> np.uint32(15))) * _MIX + single[order - 1 :])
    return found


def _ngrams(running: list[Codes], length: int) -> list[Rows]:
    """A row for each place and order."""
    return [((running[order - 1][:length] ^ np.uint32(order)) * _STEP) >> _SHIFT for order in _ORDERS]


def _unspaced(seen: Codes, running: list[Codes], length: int) -> tuple[Rows, Places]:
    """Rows and places of what the lexicon has of scripts without spaces."""
    if seen.max() < _FIRST_UNSPACED or not len(own := np.flatnonzero(_is_unspaced(seen[:length]))):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    found = [lexicon().find(_unspaced_keys(running[n][own], n + 1)) for n in range(_LONGEST_UNSPACED)]
    known = [numbers >= 0 for numbers in found]
    rows = [numbers[which].astype(np.uint32) + np.uint32(ROWS) for numbers, which in zip(found, known, strict=True)]
    return np.concatenate(rows), np.concatenate([own[which] for which in known])


def _unspaced_keys(hashes: Codes, letters: int) -> Keys:
    keys = (hashes.astype(np.uint64) | np.uint64(letters << 32)) * np.uint64(_BASE)
    return keys ^ (keys >> np.uint64(29))


def _is_unspaced(codes: Codes) -> NDArray[np.bool_]:
    return (codes >= _FIRST_UNSPACED) & (codes <= _LAST_UNSPACED)


class _Hashes:
    """Hashes of parts of a text, from sums of it (Karp and Rabin, 1987)."""

    def __init__(self, seen: Codes) -> None:
        powers, self._inverse = _powers(_BLOCK + _LONGEST_WORD + 1)
        self._sums = np.zeros(len(seen) + 1, np.uint64)
        np.cumsum(seen.astype(np.uint64) * powers[: len(seen)], out=self._sums[1:])

    def __call__(self, starts: Places, ends: Places) -> Keys:
        found = (self._sums[ends] - self._sums[starts]) * self._inverse[starts]
        found ^= found >> np.uint64(29)
        found *= np.uint64(_BASE)
        return found


def _words(seen: Codes, length: int, before: int) -> tuple[Rows, Places]:
    """Rows of the words that begin within ``length``, of each with the next one, and of what the lexicon has."""
    inner = _is_letter(seen)
    edges = np.diff(
        inner.view(np.int8), prepend=np.int8(_is_letter(np.array([before], np.uint32))[0]), append=np.int8(0)
    )
    starts = np.flatnonzero(edges == 1)
    ends = np.flatnonzero(edges == -1)
    # The first end may be that of a word from the block before.
    if len(ends) > len(starts):
        ends = ends[1:]
    ends = np.minimum(ends, starts + _LONGEST_WORD)
    hashed = _Hashes(seen)
    hashes = hashed(starts, ends)
    own = np.flatnonzero(starts < length)
    single = (hashes[own] >> _WIDE_SHIFT).astype(np.uint32)
    paired = own[: len(own) - 1] if len(own) == len(hashes) else own
    double = hashes[paired] * _FIRST_WORD + hashes[paired + 1]
    double ^= double >> np.uint64(31)
    pairs = ((double * np.uint64(_BASE)) >> _WIDE_SHIFT).astype(np.uint32)
    starts, ends = starts[own], ends[own]
    rows, places = _known(hashed, hashes[own], starts, ends)
    return np.concatenate((single, pairs, rows)), np.concatenate((starts, starts[: len(paired)], places))


def _known(hashed: _Hashes, hashes: Keys, starts: Places, ends: Places) -> tuple[Rows, Places]:
    """Rows and places of words of the lexicon, and of the parts of other words."""
    numbers = lexicon().find(hashes)
    known = numbers >= 0
    rows, places = [numbers[known]], [starts[known]]
    left = np.flatnonzero(~known)
    at, ends, owners = starts[left], ends[left], starts[left]
    for turn in range(_ROUNDS):
        if not len(at):
            break
        stops = np.minimum(at[:, None] + _PARTS, ends[:, None])
        keys = hashed(np.repeat(at, len(_PARTS)).reshape(stops.shape), stops)
        numbers = lexicon().find(keys ^ _INNER if turn else keys)
        longest = (numbers >= 0).argmax(axis=1)
        each = np.arange(len(at))
        found = numbers[each, longest]
        known = found >= 0
        rows.append(found[known])
        places.append(owners[known])
        # What goes on with an unknown beginning may be known all the same.
        stopped = np.where(known, stops[each, longest], at + 1)
        more = stopped < ends
        at, ends, owners = stopped[more], ends[more], owners[more]
    return np.concatenate(rows).astype(np.uint32) + np.uint32(ROWS), np.concatenate(places)


@cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number modulo 2^64, and of its inverse."""
    base = np.full(count, _BASE, np.uint64)
    inverse = np.full(count, pow(_BASE, -1, 2**64), np.uint64)
    base[0] = inverse[0] = 1
    return np.multiply.accumulate(base), np.multiply.accumulate(inverse)


@cache
def _letters() -> NDArray[np.bool_]:
    """Of each code point of the basic plane whether words are made of it: letters, digits and marks."""
    return np.array([unicodedata.category(chr(code))[0] in "LNM" for code in range(0x10000)])


def _is_letter(codes: Codes) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = _letters()[np.minimum(codes, 0xFFFF)] | (codes > 0xFFFF)
    return found
