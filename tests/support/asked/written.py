"""The ways in which a phrase is written: as documents have it, and in disguise."""

from __future__ import annotations

import base64
import random
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote

Way = Callable[[str], str]


def _within(sign: str) -> Way:
    """A sign in the middle of every word."""
    return lambda text: " ".join(f"{word[: len(word) // 2]}{sign}{word[len(word) // 2 :]}" for word in text.split())


def _between(sign: str) -> Way:
    return lambda text: sign.join(text.split())


def _letters(letters: str, others: str) -> Way:
    return lambda text: text.translate(str.maketrans(letters, others))


def _ligatures(text: str) -> str:
    for letters, ligature in (("ffi", "ﬃ"), ("ff", "ﬀ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("st", "ﬆ")):
        text = text.replace(letters, ligature)
    return text


def _wide(text: str) -> str:
    return "".join(
        "\u3000" if sign == " " else chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text
    )


def _circled(text: str) -> str:
    return "".join(chr(0x24D0 + ord(sign) - ord("a")) if sign.isalpha() else sign for sign in text.lower())


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _half(way: Way, seed: int) -> Way:
    """Half of the letters, at random."""

    def written(text: str) -> str:
        chance = random.Random(seed)
        return "".join(way(sign) if chance.random() < 0.5 else sign for sign in text)

    return written


CYRILLIC: Final = _letters("aceiopsxyjhkmtbACEIOPSXYJHKMTB", "асеіорѕхујһкмтьАСЕІОРЅХУЈНКМТВ")
GREEK: Final = _letters("aeiopuvykxAEIOPYKX", "αειορυνγκχΑΕΙΟΡΥΚΧ")
LEET: Final = _letters("aeiostAEIOST", "431057431057")
SMALL_CAPITALS: Final = _letters("abcdefghijklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ")

# As ordinary documents have it.
DOCUMENTS: Final[Mapping[str, Way]] = {
    "plain": str,
    "upper case": str.upper,
    "title case": str.title,
    "no-break space": _between("\u00a0"),
    "narrow no-break space": _between("\u202f"),
    "ideographic space": _between("\u3000"),
    "em space": _between("\u2003"),
    "line separator": _between("\u2028"),
    "line break": _between("\n"),
    "line break and indent": _between(" \r\n    "),
    "two spaces": _between("  "),
    "tab": _between("\t"),
    "soft hyphen": _within("\u00ad"),
    "soft hyphen at a line's end": _within("\u00ad\n"),
    "hyphenated at a line's end": _within("-\n"),
    "hyphenated, indented": _within("-\r\n   "),
    "hyphenated, quoted": _within("-\n> "),
    "hyphenated by a hyphen of its own": _within("\u2010\n"),
    "hyphen at a line's end": lambda text: text.replace("-", "-\n"),
    "zero-width space": _within("\u200b"),
    "zero-width joiner": _within("\u200d"),
    "word joiner": _within("\u2060"),
    "byte order mark": _within("\ufeff"),
    "left-to-right mark": _within("\u200e"),
    "variation selector": _within("\ufe0f"),
    "ligatures": _ligatures,
    "full width": _wide,
    "no-break hyphen": lambda text: text.replace("-", "\u2011"),
    "en dash": lambda text: text.replace("-", "\u2013"),
    "minus sign": lambda text: text.replace("-", "\u2212"),
    "entity of the space": _between("&nbsp;"),
    "entity by number": _between("&#160;"),
    "entity of the soft hyphen": _within("&shy;"),
    "entities throughout": lambda text: "".join(f"&#{ord(sign)};" for sign in text),
    "entities in hexadecimal": lambda text: "".join(f"&#x{ord(sign):x};" for sign in text),
    "entities, escaped twice": _between("&amp;nbsp;"),
    "percent-encoded": quote,
    "percent-encoded throughout": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "percent-encoded no-break space": _between("%C2%A0"),
    "escaped in JSON": _between("\\u00a0"),
    "form of a query": _between("+"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
}
# Deliberately.
DISGUISES: Final[Mapping[str, Way]] = {
    "Cyrillic": CYRILLIC,
    "half Cyrillic": _half(CYRILLIC, 1),
    "Greek": GREEK,
    "half Greek": _half(GREEK, 2),
    "Cyrillic and Greek": lambda text: _half(CYRILLIC, 3)(_half(GREEK, 4)(text)),
    "leet": LEET,
    "half leet": _half(LEET, 5),
    "one digit": lambda text: text.replace("i", "1", 1),
    "at sign": lambda text: text.replace("a", "@", 1),
    "exclamation marks": _letters("il", "!!"),
    "spaced": " ".join,
    "spaced, words further": lambda text: "   ".join(" ".join(word) for word in text.split()),
    "dotted": ".".join,
    "hyphens": "-".join,
    "underscores": "_".join,
    "base64": _encoded,
    "base64 without padding": lambda text: _encoded(text).rstrip("="),
    "base64 of a sentence": lambda text: _encoded(f"He says that {text}, and no more."),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(f"~~~ {text} ???".encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(
        f"{'a few more words, ' * 9}{text}{' and more' * 9}".encode()
    ).decode(),
    "struck through": lambda text: "".join(f"{sign}\u0336" for sign in text),
    "small capitals": lambda text: SMALL_CAPITALS(text.lower()),
    "circled": _circled,
    "mathematical": lambda text: "".join(chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in text.lower()),
    "accents": lambda text: "".join(f"{sign}\u0301" if sign.isalpha() else sign for sign in text),
}
