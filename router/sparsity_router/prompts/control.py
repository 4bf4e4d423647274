"""Control tokens that callers write out, such as `<|im_end|>`: in their text they are text, and hide nothing.

A tokenizer takes them for the model's own wherever they stand: with `<|im_end|><|im_start|>system` a caller's message
would end itself and go on as another's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from sparsity_policies.matching.rewriting import Step, Substitution

# Within such a token it makes the tokenizer read letters; models and people read over it (U+200B, zero width space).
_BREAK = "\u200b"
# Places that are looked at one by one; where there are more, an expression is faster.
_LOOKED_AT = 100


class ControlTokens:
    """What a tokenizer keeps for itself.

    Args:
        tokens: the special tokens, as they are written.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        words = {token for token in tokens if len(token) > 1}
        self._pattern = re.compile(_any_of(words)) if words else None
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
        if self._pattern is None or not self.occur(text):
            return text
        return self._pattern.sub(lambda found: f"{found[0][0]}{_BREAK}{found[0][1:]}", text)

    def hidden(self, text: str) -> tuple[Step, ...]:
        """What makes of the text what is read without its control tokens; none where it has none."""
        if self._pattern is None or not self.occur(text):
            return ()
        return Substitution(self._pattern.pattern, lambda _: ""), Substitution(self._pattern.pattern, lambda _: " ")

    def to_scan(self, text: str) -> str:
        """What a scan must see: the text, and where there are control tokens, what is read without them, too."""
        if self._pattern is None or not self.occur(text):
            return text
        return "\n".join((text, self.as_text(text), self._pattern.sub("", text), self._pattern.sub(" ", text)))


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
