"""Letters and their marks, composed (NFC, Unicode Standard Annex 15)."""

from __future__ import annotations

import contextlib
import unicodedata
from functools import partial
from typing import Final

import numpy as np

from sparsity_policies.matching.rewriting import CODE_POINTS, Substitution, Traced, to_codes

# Vowels and final consonants of Korean, which compose by arithmetic.
_JAMO: Final = (range(0x1161, 0x1176), range(0x11A8, 0x11C3))
# Where marks are, and what comes apart into letters and marks: not among ideographs.
_WITH_MARKS: Final = (*range(0xC0, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x1F000))
_CHUNK: Final = 1 << 14


class Composition:
    """Composes a text whose characters are composed each by itself.

    The library goes through all of a text as soon as one letter of it may have to be composed, some ten times as slowly
    as through one that is: here only through the part in which one has to.
    """

    def __init__(self) -> None:
        classes = np.zeros(CODE_POINTS, np.uint8)
        self._joining = np.zeros(CODE_POINTS, np.bool_)
        pairs, seconds = list[int](), list[int]()
        for code in _WITH_MARKS:
            character = chr(code)
            parts = unicodedata.decomposition(character).split()
            last = unicodedata.normalize("NFD", character)[-1] if parts else character
            classes[code] = unicodedata.combining(last)
            self._joining[code] = unicodedata.combining(character) > 0
            if len(parts) == 2 and not parts[0].startswith("<"):
                first, second = (int(part, 16) for part in parts)
                seconds.append(second)
                # Some come apart and are never put together again.
                if unicodedata.normalize("NFC", chr(first) + chr(second)) == character:
                    pairs.append(first << 32 | second)
        # Of the last mark of each, which decides what may follow it.
        self._classes = classes
        self._pairs = np.array(sorted(pairs), np.uint64)
        self._joining[seconds] = True
        for jamo in _JAMO:
            self._joining[jamo.start : jamo.stop] = True
        joining = "".join(map(chr, np.flatnonzero(self._joining).tolist()))
        self._clusters = Substitution(f"(?:^|[^{joining}])[{joining}]+", partial(unicodedata.normalize, "NFC"))

    def __call__(self, text: str) -> str:
        """The text, composed."""
        if text.isascii():
            return text
        parts, at = list[str](), 0
        while at < len(text):
            end = at + _CHUNK
            while end < len(text) and self._joining[ord(text[end])]:
                end += 1
            part = text[at:end]
            parts.append(unicodedata.normalize("NFC", part) if self._composes(part) else part)
            at = end
        return "".join(parts)

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``."""
        return self._clusters.traced(text)

    def _composes(self, text: str) -> bool:
        """Whether there may be anything to compose or to put in order."""
        with contextlib.suppress(UnicodeEncodeError):
            # Without a single mark.
            return not text.encode("latin-1")
        codes = to_codes(text)
        joining = np.flatnonzero(self._joining[codes[1:]]) + 1
        if not len(joining):
            return False
        before, after = codes[joining - 1], codes[joining]
        if (self._classes[before] > 0).any() or any(((after >= one.start) & (after < one.stop)).any() for one in _JAMO):
            return True
        pairs = before.astype(np.uint64) << np.uint64(32) | after
        places = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
        return bool((self._pairs[places] == pairs).any())
