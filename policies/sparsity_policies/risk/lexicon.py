"""Words that the model knows by meaning, though no text that it has learnt has them: found by their hash.

Which words these are, `tools/word_vectors.py` says; what each says of a domain is in the model.
"""

from __future__ import annotations

import io
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

FILE: Final = "lexicon.npy"
# Eight places for a word: one in sixteen has its place taken by a more frequent one, and is not known.
_SLOT_BITS: Final = 20
_SLOT = np.uint64(64 - _SLOT_BITS)
_HALF = np.uint64(32)
_NUMBER = np.uint64(2**32 - 1)

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int32]


class Lexicon:
    """Numbers of words; immutable.

    Args:
        keys: hash of each word, the most frequent first.
    """

    def __init__(self, keys: Keys) -> None:
        self._size = len(keys)
        slots = (keys >> _SLOT).astype(np.int64)
        taken, first = np.unique(slots, return_index=True)
        # Half a key and a number side by side: one look for both. No number is one that is not there.
        self._places = np.zeros(2**_SLOT_BITS, np.uint64)
        self._places[taken] = (keys[first] << _HALF) | (first + 1).astype(np.uint64)

    def __len__(self) -> int:
        return self._size

    def find(self, keys: Keys) -> Numbers:
        """The number of each word, -1 for one that is not known."""
        found = self._places.take((keys >> _SLOT).astype(np.int64))
        return np.where((found ^ (keys << _HALF)) <= _NUMBER, (found & _NUMBER).astype(np.int32) - 1, -1)


@cache
def lexicon() -> Lexicon:
    """That of the package, read once a process."""
    path = resources.files("sparsity_policies.risk") / FILE
    keys = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) if path.is_file() else np.zeros(0, np.uint64)
    return Lexicon(keys)
