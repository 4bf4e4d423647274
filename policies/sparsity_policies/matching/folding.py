"""Text as it is read: what looks like a phrase is found as that phrase, whatever characters it was typed with.

Word processors put no-break spaces and hyphens, soft hyphens and ligatures into what people paste; others hide a word
behind characters that nobody sees. Letters of other scripts that look alike stay what they are.
"""

from __future__ import annotations

import sys
import unicodedata
from functools import cache
from typing import Final

from sparsity_policies.matching.composing import Composition
from sparsity_policies.matching.rewriting import CharacterMap, Step, Substitution, rewritten

# Default_Ignorable_Code_Point (Unicode Standard Annex 44): they have no width.
_UNSEEN: Final = (
    "\u00ad\u034f\u061c\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Property Dash, but for its ASCII sign; compatibility forms of it are dashes by then.
_DASHES: Final = (
    "\u058a\u05be\u1400\u1806\u2010-\u2015\u2043\u2053\u207b\u208b\u2212\u2e17\u2e1a\u2e3a-\u2e3b\u301c\u3030"
)
_APOSTROPHES: Final = "\u00b4\u2018-\u2019\u201b\u02bc"
_QUOTES: Final = "\u201c-\u201f"
_SPACES: Final = "\u0085\u1680\u2028-\u2029"
# The capital of the Turkish `i`: its small letter is two characters, of which it is made up itself.
_DOTTED: Final = "\u0130"
_BLOCK: Final = 256


def folded(text: str) -> str:
    """The text in compatibility form NFKC (Unicode Standard Annex 15), its dashes, quotes and spaces in ASCII, without
    what is not seen. Letters keep their case but where folding it takes more than the other case of the same letter
    (`ß` is `ss`): what is scanned for takes no account of case."""
    return text if text.isascii() else rewritten(text, folding())


@cache
def folding() -> tuple[Step, ...]:
    """The steps of :func:`folded`."""
    # At a line's end a soft hyphen is one.
    return Substitution("\u00ad[ \t]*\r?\n[ \t]*", lambda _: ""), CharacterMap(characters()), Composition()


def _members(ranges: str) -> str:
    """The characters of a set, written as in an expression."""
    found, at = "", 0
    while at < len(ranges):
        if ranges[at + 1 : at + 2] == "-":
            found += "".join(map(chr, range(ord(ranges[at]), ord(ranges[at + 2]) + 1)))
            at += 3
        else:
            found += ranges[at]
            at += 1
    return found


@cache
def characters() -> dict[str, str]:
    """What each character is folded to by itself, where that is another text."""
    signs = dict.fromkeys(_members(_UNSEEN), "")
    for sign, members in (("-", _DASHES), ("'", _APOSTROPHES), ('"', _QUOTES), (" ", _SPACES)):
        signs |= dict.fromkeys(_members(members), sign)
    found = dict(signs)
    for start in range(0x80, sys.maxunicode + 1, _BLOCK):
        block = "".join(map(chr, range(start, min(start + _BLOCK, sys.maxunicode + 1))))
        # Most blocks are as they should be, seen at once.
        if unicodedata.normalize("NFKC", block) == block and block.casefold() == block.lower():
            continue
        for character in block:
            if character not in signs:
                plain = unicodedata.normalize("NFKC", character)
                plain = unicodedata.normalize("NFKC", "".join(signs.get(each, _case(each)) for each in plain))
                if plain != character:
                    found[character] = plain
    return found


def _case(letter: str) -> str:
    """A letter in either case, unless what folding its case gives is neither."""
    fold = letter.casefold()
    return letter if letter == _DOTTED or (len(fold) == 1 and fold == letter.lower()) else fold
