"""A literal in the forms that ordinary documents have, and in deliberate disguise."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Final

_LIGATURES: Final = (("ffi", "\ufb03"), ("fi", "\ufb01"), ("fl", "\ufb02"), ("ff", "\ufb00"), ("st", "\ufb06"))
_ALIKE: Final = str.maketrans("aeopcxyi", "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456")
_LEET: Final = str.maketrans("aeiost", "4310$7")


def _middle(text: str, put: str) -> str:
    """``put`` within the longest word."""
    word = max(text.split(), key=len)
    return text.replace(word, word[: len(word) // 2] + put + word[len(word) // 2 :], 1)


def _ligatures(text: str) -> str:
    for plain, joined in _LIGATURES:
        text = text.replace(plain, joined)
    return text


def _full_width(text: str) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


# What word processors, PDFs and web pages make of a phrase.
DOCUMENTS: Final[Mapping[str, Callable[[str], str]]] = {
    "as it is": str,
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "soft hyphen": lambda text: _middle(text, "\u00ad"),
    "ligature": _ligatures,
    "hyphenated at a line end": lambda text: _middle(text, "-\n"),
    "zero-width space": lambda text: _middle(text, "\u200b"),
    "full width": _full_width,
    "entity": lambda text: text.replace(" ", "&nbsp;"),
    "line break": lambda text: text.replace(" ", "\n"),
    "upper case": str.upper,
}
# What somebody makes of it who would rather not be found.
DISGUISES: Final[Mapping[str, Callable[[str], str]]] = {
    "letters that look alike": lambda text: text.translate(_ALIKE),
    "leet": lambda text: text.translate(_LEET),
    "spaced letters": lambda text: "  ".join(" ".join(word) for word in text.split(" ")),
    "base64": lambda text: base64.b64encode(f"Note: {text}, please.".encode()).decode(),
}
