"""A text as numbers of hashed n-grams (feature hashing, Weinberger et al., ICML 2009), in passes over whole arrays.

Letters are counted as code points, so that an n-gram spans as much of a Hindi word as of an English one, and
positions are those of the text. Each n-gram belongs to the place where it begins: a window's features are those that
begin in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.matching.folding import folded

ROW_BITS: Final = 17
ROWS: Final = 2**ROW_BITS
_ORDERS: Final = (2, 3, 4, 5)
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

Codes = NDArray[np.uint32]
Rows = NDArray[np.uint32]


class Placed(NamedTuple):
    """Features of a block of a text.

    Attributes:
        start: of the block in the text.
        length: characters of it.
        dense: a row for each character of the block and each order of n-grams.
        words: rows of words and of pairs of words, in order of ``places``.
        places: where they begin in the block.
    """

    start: int
    length: int
    dense: list[Rows]
    words: Rows
    places: NDArray[np.int64]


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
        yield Placed(start, length, _ngrams(seen, length), *_words(seen, length, before))


def rows_of(codes: Codes) -> Rows:
    """All features of a text, in no order."""
    found = [rows for block in blocks(codes) for rows in (*block.dense, block.words)]
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


def _ngrams(seen: Codes, length: int) -> list[Rows]:
    """A row for each place and order."""
    found = []
    running = seen * _STEP
    single = running
    for order in range(2, max(_ORDERS) + 1):
        running = (running[:-1] ^ (running[:-1] >> np.uint32(15))) * _MIX + single[order - 1 :]
        if order in _ORDERS:
            found.append(((running[:length] ^ np.uint32(order)) * _STEP) >> _SHIFT)
    return found


def _words(seen: Codes, length: int, before: int) -> tuple[Rows, NDArray[np.int64]]:
    """Rows of the words that begin within ``length``, and of each with the next one."""
    inner = _is_letter(seen)
    edges = np.diff(
        inner.view(np.int8), prepend=np.int8(_is_letter(np.array([before], np.uint32))[0]), append=np.int8(0)
    )
    starts = np.flatnonzero(edges == 1)
    ends = np.flatnonzero(edges == -1)
    # The first end may be that of a word from the block before.
    if len(ends) > len(starts):
        ends = ends[1:]
    powers, inverse = _powers(_BLOCK + _LONGEST_WORD + 1)
    sums = np.zeros(len(seen) + 1, np.uint64)
    np.cumsum(seen.astype(np.uint64) * powers[: len(seen)], out=sums[1:])
    hashes = (sums[np.minimum(ends, starts + _LONGEST_WORD)] - sums[starts]) * inverse[starts]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(_BASE)
    own = np.flatnonzero(starts < length)
    single = (hashes[own] >> _WIDE_SHIFT).astype(np.uint32)
    paired = own[: len(own) - 1] if len(own) == len(hashes) else own
    double = hashes[paired] * _FIRST_WORD + hashes[paired + 1]
    double ^= double >> np.uint64(31)
    pairs = ((double * np.uint64(_BASE)) >> _WIDE_SHIFT).astype(np.uint32)
    return np.concatenate((single, pairs)), np.concatenate((starts[own], starts[paired]))


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
