"""What a phrase looks like, whoever wrote it: letters that look alike are one, and spaced ones are words again.

Only literals are looked for in it: it is too coarse for expressions.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.matching.folding import characters
from sparsity_policies.matching.rewriting import CharacterMap, Codes, Deletion, Squeezing, rewritten

# Digits and signs that stand for letters, and letters that are not told apart from them.
_ALIKE: Final = {"a": "4@", "b": "8", "e": "3", "g": "9", "i": "1!|l", "o": "0", "s": "5$", "t": "7", "z": "2"}
# Unicode's names of letters in squares and circles, of flags and of small capitals, and where they are.
_NAMED: Final = re.compile(r"(?:.* )?(?:SQUARED|CIRCLED|REGIONAL INDICATOR|LATIN) .*(?:LETTER|SMALL CAPITAL) ([A-Z])")
_PICTURED: Final = (*range(0x0250, 0x02B0), *range(0x1D00, 0x1D80), *range(0xA720, 0xA800), *range(0x1F100, 0x1F200))
# Where characters are that have to be looked at: not among ideographs.
_LETTERS: Final = (*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x10500), *range(0x1D400, 0x1F200))
_MARKS: Final = (range(0x300, 0x370), range(0x1AB0, 0x1B00), range(0x1DC0, 0x1E00), range(0x20D0, 0x2100))
# Between words: a sign that no text has, so that what is looked for in disguise is found in nothing else.
SEPARATOR: Final = "\x01"
# The last step of :func:`bare`.
SQUEEZING: Final = Squeezing(SEPARATOR)
# Separators between the letters of a spaced word, at most.
_BETWEEN: Final = 2


def bare(text: str) -> str:
    """A text in letters that look like no other one, its words apart by separators."""
    return rewritten(text, (baring(), joining(), SQUEEZING))


@cache
def baring() -> CharacterMap:
    """The first step of :func:`bare`: letters."""
    return CharacterMap(_alike())


@cache
def joining() -> Deletion:
    """The second: words whose letters stand apart."""
    return Deletion(_outside_of_spaced, 2 + _BETWEEN)


def _alike() -> dict[str, str]:
    """What each character looks like: small letters, nothing, or a separator."""
    signs = {chr(code): SEPARATOR for code in range(0x80)}
    signs |= {letter: letter.lower() for letter in string.ascii_letters} | {digit: digit for digit in string.digits}
    for letter, others in _ALIKE.items():
        signs |= dict.fromkeys(others + others.upper(), letter)
    confusable = dict(_confusables())
    folds = characters()
    found = dict(signs)
    for character in map(chr, _LETTERS):
        # In either case: capitals of Greek and Cyrillic look more like Latin than small letters do.
        like = next(filter(None, map(confusable.get, (character, character.lower(), character.upper()))), "")
        plain = like or unicodedata.normalize("NFD", folds.get(character, character)).translate(_UNMARKED)
        plain = "".join(confusable.get(each, each) for each in plain)
        plain = "".join(signs.get(each, each if _is_word(each) else SEPARATOR) for each in plain)
        if plain != character and unicodedata.category(character) != "Cn":
            found[character] = plain
    return found


def _is_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


_UNMARKED: Final = {code: None for codes in _MARKS for code in codes}


def _confusables() -> Iterator[tuple[str, str]]:
    """Letters that look like one of ASCII (Unicode Technical Standard 39, confusables.txt)."""
    table = resources.files("confusable_homoglyphs").joinpath("confusables.json")
    for character, others in json.loads(table.read_text(encoding="utf-8")).items():
        if len(character) == 1 and not character.isascii():
            for other in others:
                if len(other["c"]) == 1 and other["c"].isascii() and other["c"].isalnum():
                    yield character, other["c"]
    for code in _PICTURED:
        if named := _NAMED.fullmatch(unicodedata.name(chr(code), "")):
            yield chr(code), named[1].lower()


def _outside_of_spaced(codes: Codes) -> NDArray[np.bool_]:
    """All but what separates single letters."""
    kept = np.ones(len(codes), np.bool_)
    letters = np.flatnonzero(codes != ord(SEPARATOR))
    if len(letters) < 2:
        return kept
    gaps = np.diff(letters)
    # A letter is single when there is a separator, or nothing, on either side of it.
    apart = np.concatenate(([True], gaps > 1, [True]))
    single = apart[:-1] & apart[1:]
    joined = single[:-1] & single[1:] & (gaps <= 1 + _BETWEEN)
    for distance in range(1, 1 + _BETWEEN):
        places = letters[:-1][joined & (gaps > distance)] + distance
        kept[places] = False
    return kept
