"""What a text may be read as: as it is written, in its normal form, and as what it says in disguise.

The normal form is the same for texts, literals and patterns: escapes resolved, NFKC, any white space a space, nothing
that is not seen; of texts words are joined that a line's end parts. A text without a sign that it may be read otherwise
is scanned once, as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sparsity_policies.matching.disguises import SQUEEZING, baring, joining
from sparsity_policies.matching.escapes import ESCAPES, Base64
from sparsity_policies.matching.folding import folded, folding
from sparsity_policies.matching.rewriting import Step, Substitution, Traced, rewritten
from sparsity_policies.matching.signs import Signs, signs_of

# Escapes are escaped in turn where a page stands in a page.
_ESCAPED_TWICE: Final = 2
_LINE_END: Final = r"-[ \t]*[\r\n\f\v][\s>|*#]*"
# A hyphen at a line's end is the word's or the line's: nothing tells.
_HYPHENS: Final[tuple[Step, ...]] = (Substitution(_LINE_END, lambda _: ""), Substitution(_LINE_END, lambda _: "-"))
_ENCODED: Final = Base64()


class Form(NamedTuple):
    """A text in one of its forms.

    Attributes:
        kind: `normal`, `hyphenated` or `disguised`; of what is encoded `encoded written`, `encoded normal` and so on.
        text: what it says.
        steps: that made it of the text as it was written.
    """

    kind: str
    text: str
    steps: tuple[Step, ...]

    def traced(self, text: str) -> Traced:
        """The form with where it comes from in ``text``, which it is of."""
        traced = Traced.of(text)
        for step in self.steps:
            traced = traced.through(step)
        return traced


def prepare() -> None:
    """Makes the tables that texts are read by: a quarter of a second that no prompt should wait for."""
    folding()
    baring()
    signs_of(b"-")
    _ENCODED("-")


def readings(data: bytes, found: Signs | None = None) -> tuple[bytes, ...]:
    """Everything that a text in UTF-8 may be read as, in UTF-8: what is scanned. The text itself comes first.

    Args:
        data: the text.
        found: its signs, where they are known.

    Raises:
        ValueError: when the engine that finds base64 cannot finish.
    """
    found = signs_of(data) if found is None else found
    if not found:
        return (data,)
    others = (form.text.encode("utf-8", "replace") for form in forms(data.decode("utf-8", "replace"), found))
    return data, *(other for other in others if other != data)


def forms(text: str, found: Signs) -> Iterator[Form]:
    """The forms of a text with such signs, beside the text itself."""
    yield from _forms(text, found)
    if Signs.ENCODED in found and (decoded := _ENCODED(text)):
        yield Form("encoded written", decoded, (_ENCODED,))
        for form in _forms(decoded, signs_of(decoded.encode())):
            yield Form(f"encoded {form.kind}", form.text, (_ENCODED, *form.steps))


def normal(text: str) -> str:
    """The normal form of a literal or a pattern: escapes are resolved, lines are none of it."""
    return folded(rewritten(text, ESCAPES))


def _forms(text: str, found: Signs) -> Iterator[Form]:
    if Signs.ESCAPED | Signs.FOREIGN in found:
        # What looks like an escape may be none.
        yield Form("normal", rewritten(text, folding()), folding())
    plain, steps = text, tuple[Step, ...]()
    for _ in range(_ESCAPED_TWICE):
        if Signs.ESCAPED in found:
            plain, steps = rewritten(plain, ESCAPES), (*steps, *ESCAPES)
            found = signs_of(plain.encode("utf-8", "replace"))
    unfolded, before = plain, steps
    if Signs.FOREIGN in found:
        plain, steps = rewritten(plain, folding()), (*steps, *folding())
        found |= signs_of(plain.encode())
    if steps:
        yield Form("normal", plain, steps)
    if Signs.HYPHENATED in found:
        for hyphen in _HYPHENS:
            yield Form("hyphenated", hyphen(plain), (*steps, hyphen))
    if found & (Signs.FOREIGN | Signs.DISGUISED | Signs.SPACED):
        plain, steps = baring()(unfolded), (*before, baring())
        if signs_of(plain.encode()) & Signs.SPACED:
            plain, steps = joining()(plain), (*steps, joining())
        yield Form("disguised", SQUEEZING(plain), (*steps, SQUEEZING))
