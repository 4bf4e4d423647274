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
        self._tags = np.zeros(2**_SLOT_BITS, np.uint32)
        self._numbers = np.full(2**_SLOT_BITS, -1, np.int32)
        self._tags[taken] = keys[first].astype(np.uint32)
        self._numbers[taken] = first

    def __len__(self) -> int:
        return self._size

    def find(self, keys: Keys) -> Numbers:
        """The number of each word, -1 for one that is not known."""
        slots = keys >> _SLOT
        found = self._numbers.take(slots.astype(np.int64))
        found[self._tags.take(slots.astype(np.int64)) != keys.astype(np.uint32)] = -1
        return found


@cache
def lexicon() -> Lexicon:
    """That of the package, read once a process."""
    path = resources.files("sparsity_policies.risk") / FILE
    keys = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) if path.is_file() else np.zeros(0, np.uint64)
    return Lexicon(keys)
