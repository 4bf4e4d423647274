"""Steps that rewrite a text in time linear in its length, and can tell where each character came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

# Where characters come from: of each, the place of the character that gave it.
Origins = NDArray[np.int64]
Codes = NDArray[np.uint32]
CODE_POINTS = 0x110000
# Characters that a step works on at a time, so that its arrays stay in the processor's cache.
_CHUNK = 1 << 14


class Traced(NamedTuple):
    """A text and where its characters come from."""

    text: str
    origins: Origins

    @classmethod
    def of(cls, text: str) -> Traced:
        """A text as it was written."""
        return cls(text, np.arange(len(text)))

    def through(self, step: Step) -> Traced:
        """The text after ``step``; it still tells where in the first one its characters come from."""
        made = step.traced(self.text)
        return Traced(made.text, self.origins[made.origins])


class Step(Protocol):
    """Rewrites a text."""

    def __call__(self, text: str) -> str:
        """The text, rewritten."""

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``."""


def to_codes(text: str) -> Codes:
    """Code points of a text; a lone surrogate, which is no character, is `?`."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


def to_text(codes: Codes) -> str:
    """The text of code points."""
    return codes.tobytes().decode("utf-32-le")


class CharacterMap:
    """Replaces characters, each by a text of its own: some nanoseconds a character, however many are replaced.

    Args:
        replacements: by character; an empty one drops it.
    """

    def __init__(self, replacements: Mapping[str, str]) -> None:
        self._ascii = {ord(key): value for key, value in replacements.items() if key.isascii()}
        self._table = np.arange(CODE_POINTS, dtype=np.uint32)
        # Of those that no single character takes the place of: how many do, and where they begin in `_longer`.
        longer = [value for value in replacements.values() if len(value) != 1]
        self._counts = np.array([len(value) for value in longer], np.int64)
        self._begins = np.cumsum(self._counts) - self._counts
        self._longer = to_codes("".join(longer))
        number = 0
        for key, value in replacements.items():
            self._table[ord(key)] = ord(value) if len(value) == 1 else CODE_POINTS + number
            number += len(value) != 1

    def __call__(self, text: str) -> str:
        """The text with its characters replaced."""
        if text.isascii():
            return text.translate(self._ascii)
        chunks = (text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK))
        return "".join([to_text(self._mapped(to_codes(chunk))[0]) for chunk in chunks])

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``."""
        if not text:
            return Traced.of(text)
        mapped, counts = self._mapped(to_codes(text))
        origins = np.arange(len(text))
        return Traced(to_text(mapped), origins if counts is None else np.repeat(origins, counts))

    def _mapped(self, codes: Codes) -> tuple[Codes, NDArray[np.int64] | None]:
        """The code points, and how many each of ``codes`` gave; None for one each."""
        mapped = self._table.take(codes)
        special = np.flatnonzero(mapped >= CODE_POINTS)
        if not len(special):
            return mapped, None
        which = mapped[special] - CODE_POINTS
        counts = self._counts[which]
        # Where each of them begins, behind what those before it added or took away.
        starts = special + np.cumsum(counts - 1) - (counts - 1)
        result = np.empty(len(codes) + int((counts - 1).sum()), np.uint32)
        single = np.ones(len(result), np.bool_)
        for number in range(int(counts.max())):
            more = counts > number
            single[starts[more] + number] = False
            result[starts[more] + number] = self._longer[self._begins[which[more]] + number]
        result[single] = mapped[mapped < CODE_POINTS]
        each = np.ones(len(codes), np.int64)
        each[special] = counts
        return result, each


class Substitution:
    """Replaces what an expression finds.

    Args:
        pattern: without groups.
        replace: gives what takes the place of what was found; asked once for each text that is found.
    """

    def __init__(self, pattern: str, replace: Callable[[str], str]) -> None:
        self._pattern = re.compile(f"({pattern})")
        self._replace = replace

    def __call__(self, text: str) -> str:
        """The text with all of them replaced."""
        # Half the time of a call for each match.
        parts = self._pattern.split(text)
        if len(parts) == 1:
            return text
        known = {found: self._replace(found) for found in set(parts[1::2])}
        parts[1::2] = map(known.__getitem__, parts[1::2])
        return "".join(parts)

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``: what was replaced, from where it began."""
        parts, origins, at = list[str](), [np.arange(0)], 0
        for found in self._pattern.finditer(text):
            replaced = self._replace(found[0])
            parts += text[at : found.start()], replaced
            origins += np.arange(at, found.start()), spread(len(replaced), found.start(), found.end())
            at = found.end()
        return Traced("".join((*parts, text[at:])), np.concatenate((*origins, np.arange(at, len(text)))))


class Deletion:
    """Deletes what a rule finds superfluous.

    Args:
        kept: tells of code points which of them stay.
        context: characters on either side of one that the rule looks at, at most.
    """

    def __init__(self, kept: Callable[[Codes], NDArray[np.bool_]], context: int) -> None:
        self._kept = kept
        self._context = context

    def __call__(self, text: str) -> str:
        """The text without it."""
        parts = list[str]()
        for at in range(0, len(text), _CHUNK):
            before = min(at, self._context)
            codes = to_codes(text[at - before : at + _CHUNK + self._context])
            part = slice(before, before + _CHUNK)
            parts.append(to_text(codes[part][self._kept(codes)[part]]))
        return "".join(parts)

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``."""
        codes = to_codes(text)
        origins = np.flatnonzero(self._kept(codes))
        return Traced(to_text(codes[origins]), origins)


class Squeezing:
    """Makes runs of a character one.

    Args:
        character: it.
    """

    def __init__(self, character: str) -> None:
        self._character = character
        self._deletion = Deletion(self._kept, 1)

    def __call__(self, text: str) -> str:
        """The text without runs; halving them takes a fifth of the time of an expression."""
        while 2 * self._character in text:
            text = text.replace(2 * self._character, self._character)
        return text

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``."""
        return self._deletion.traced(text)

    def _kept(self, codes: Codes) -> NDArray[np.bool_]:
        found = codes == ord(self._character)
        kept: NDArray[np.bool_] = ~(found & np.concatenate(([False], found[:-1])))
        return kept


def spread(count: int, start: int, end: int) -> Origins:
    """Origins of ``count`` characters that came from [start, end) together."""
    return start + np.arange(count) * (end - start) // max(count, 1)


def rewritten(text: str, steps: Sequence[Step]) -> str:
    """The text after all ``steps``."""
    for step in steps:
        text = step(text)
    return text
