"""Control tokens that callers write out, such as `<|im_end|>`: in their text they are text, and hide nothing.

A tokenizer takes them for the model's own wherever they stand: with `<|im_end|><|im_start|>system` a caller's message
would end itself and go on as another's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from sparsity_policies.matching.rewriting import Step, Substitution

# Within such a token it makes the tokenizer read letters; models and people read over it (U+200B, zero width space).
_BREAK = "\u200b"
# Places that are looked at one by one; where there are more, an expression is faster.
_LOOKED_AT = 100
# Characters that an expression is given at a time: no other thread runs until it is through.
_PIECE = 1 << 16


class Opened(NamedTuple):
    """A text whose control tokens are text.

    Attributes:
        text: it, with every control token broken up.
        scanned: what a scan must see: as it was written and, where there are control tokens, what is read without them.
    """

    text: str
    scanned: str


class ControlTokens:
    """What a tokenizer keeps for itself.

    Args:
        tokens: the special tokens, as they are written.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        words = {token for token in tokens if len(token) > 1}
        self._expression = _any_of(words)
        # What is found stays among the parts of a text that is split by it.
        self._pattern = re.compile(f"({self._expression})") if words else None
        self._longest = max(map(len, words), default=0)
        self._broken = {word: f"{word[0]}{_BREAK}{word[1:]}" for word in words}
        # Letters are found by far faster than expressions; as a rule all tokens begin with `<`.
        self._heads = sorted({word[0] for word in words})

    def occur(self, text: str) -> bool:
        """Whether there is any in ``text``."""
        return any(self._begins(head, text) for head in self._heads)

    def _begins(self, head: str, text: str) -> bool:
        """Whether there is one that begins with ``head``."""
        assert self._pattern is not None
        at = text.find(head)
        for _ in range(_LOOKED_AT):
            if at < 0 or self._pattern.match(text, at):
                return at >= 0
            at = text.find(head, at + 1)
        return at >= 0 and self._pattern.search(text, at) is not None

    def as_text(self, text: str) -> str:
        """The text with every control token broken up, so that it stays text."""
        return "".join(map(self._joined, self._parts(text))) if self.occur(text) else text

    def hidden(self, text: str) -> tuple[Step, ...]:
        """What makes of the text what is read without its control tokens; none where it has none."""
        if not self.occur(text):
            return ()
        return Substitution(self._expression, lambda _: ""), Substitution(self._expression, lambda _: " ")

    def opened(self, text: str) -> Opened:
        """The text as a model and as a scan are given it."""
        if not self.occur(text):
            return Opened(text, text)
        pieces = list(self._parts(text))
        joined, parted = ("".join(between.join(parts[::2]) for parts in pieces) for between in ("", " "))
        broken = "".join(map(self._joined, pieces))
        return Opened(broken, "\n".join((text, broken, joined, parted)))

    def _joined(self, parts: list[str]) -> str:
        """The text of a piece, the control tokens among its parts broken up."""
        parts[1::2] = map(self._broken.__getitem__, parts[1::2])
        return "".join(parts)

    def _parts(self, text: str) -> Iterator[list[str]]:
        """The text piece by piece: what stands around control tokens, and each of them between."""
        assert self._pattern is not None
        at = 0
        while at < len(text):
            piece = text[at : at + _PIECE + self._longest]
            parts, end = self._pattern.split(piece), len(piece)
            # One that begins behind the piece's end may be cut off: it is the next one's.
            while len(parts) > 1 and end - len(parts[-1]) - len(parts[-2]) >= _PIECE:
                end -= len(parts[-1]) + len(parts[-2])
                del parts[-2:]
            last = end - len(parts[-1])
            end = min(end, max(last, _PIECE))
            parts[-1] = piece[last:end]
            yield parts
            at += end


def _any_of(words: Collection[str]) -> str:
    """An expression for any of ``words``, the longest that fits; by their letters, because there may be thousands."""
    heads: dict[str, list[str]] = {}
    for word in sorted(words):
        if word:
            heads.setdefault(word[0], []).append(word[1:])
    branches = [re.escape(head) + _any_of(rest) for head, rest in heads.items()]
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{joined})?" if "" in words else joined
