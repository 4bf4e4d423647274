"""Signs that a text may be read as another one, found at the speed of the scan: most texts have none."""

from __future__ import annotations

from enum import IntFlag, auto
from functools import cache
from typing import Final

from sparsity_policies.matching.disguises import SEPARATOR
from sparsity_policies.matching.expressions import ONCE, Expressions, compile_expressions


class Signs(IntFlag):
    """What there may be to read."""

    # Characters beyond ASCII.
    FOREIGN = auto()
    # Entities of HTML, percent-encoding, escapes of JSON.
    ESCAPED = auto()
    # A word that goes on in the next line.
    HYPHENATED = auto()
    # A run of characters that looks like base64.
    ENCODED = auto()
    # Digits and signs among letters.
    DISGUISED = auto()
    # Letters that stand apart.
    SPACED = auto()


NONE: Final = Signs(0)
# One literal each where it can be: an expression without any takes several times as long.
_EXPRESSIONS: Final = (
    *((Signs.ESCAPED, sign) for sign in (r"&(?:#x?[0-9a-f]{2}|[a-z0-9]{2,31};)", "%[0-9a-f]{2}", r"\\u[0-9a-f]{4}")),
    (Signs.HYPHENATED, r"-[ \t]*[\r\n\f\v]"),
    (Signs.ENCODED, "[a-z0-9+/_=-]{16}"),
    *((Signs.DISGUISED, rf"[a-z]\x{ord(sign):x}[a-z013457@$!|]") for sign in "013457@$!|+"),
    *((Signs.DISGUISED, rf"[\s]\x{ord(sign):x}[a-z]") for sign in "@$!|"),
    *((Signs.SPACED, rf"(?:\x{ord(sign):02x}[a-z@$!|]){{3}}\x{ord(sign):02x}") for sign in f" .-_*{SEPARATOR}"),
)


@cache
def _expressions() -> Expressions:
    return Expressions(compile_expressions([expression for _, expression in _EXPRESSIONS], ONCE))


def signs_of(data: bytes) -> Signs:
    """The signs in a text in UTF-8; all there are when the engine cannot finish, so that nothing is left out."""
    found = NONE if data.isascii() else Signs.FOREIGN
    try:
        for number, _ in _expressions().matches(data):
            found |= _EXPRESSIONS[number][0]
    except ValueError:
        return ~NONE
    return found
