"""What words mean, in some hundred languages: the word vectors that the shipped model of risk is learnt with.

They are the input embeddings of multilingual-e5-small (MIT; Wang et al., arXiv:2402.05672). Only learning needs them: a
model keeps one number a word and domain.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sparsity_policies.risk.features import codes_of
from sparsity_router.prompts.opinion.model_file import ModelFile, fetched

_WORD_START: Final = "\u2581"
_SPACED: Final = ("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI")
_UNSPACED: Final = range(0x3040, 0xA000)
_LONGEST_UNSPACED: Final = 4
_SHORTEST_INNER: Final = 2
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


def word_vectors() -> WordVectors:
    """The vocabulary and the first table of the model file, which is downloaded once."""
    model = ModelFile(fetched().read_bytes())
    odds = np.exp(model.log_odds.astype(np.float64))
    odds[:4] = 0.0
    odds /= odds.sum()
    return _merged(model.pieces, odds, model.tensor("emb.word", -1, model.width)[: len(model.pieces)])


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
