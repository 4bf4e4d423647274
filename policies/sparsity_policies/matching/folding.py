"""Text as it is read: what looks like a phrase is found as that phrase, whatever characters it was typed with.

Word processors put no-break spaces and hyphens, soft hyphens and ligatures into what people paste; others hide a word
behind characters that nobody sees. Letters of other scripts that look alike stay what they are.
"""

from __future__ import annotations

import re
import unicodedata

# Default_Ignorable_Code_Point (Unicode Standard Annex 44): they have no width.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
# Property Dash, but for its ASCII sign; compatibility forms of it are dashes by then.
_DASHES = re.compile(
    "[\u058a\u05be\u1400\u1806\u2010-\u2015\u2043\u2053\u207b\u208b\u2212\u2e17\u2e1a\u2e3a\u2e3b\u301c\u3030]"
)
_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc]")
_SPACES = re.compile("[\u0085\u1680\u2028\u2029]")


def folded(text: str) -> str:
    """The text in compatibility form NFKC (Unicode Standard Annex 15), its dashes, apostrophes and spaces in ASCII,
    without what is not seen."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
    return _SPACES.sub(" ", _APOSTROPHES.sub("'", _DASHES.sub("-", text)))
