"""Control tokens that callers write out, such as `<|im_end|>`: in their text they are text, and hide nothing.

A tokenizer takes them for the model's own wherever they stand: with `<|im_end|><|im_start|>system` a caller's message
would end itself and go on as another's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

# Within such a token it makes the tokenizer read letters; models and people read over it (U+200B, zero width space).
_BREAK = "\u200b"


class ControlTokens:
    """What a tokenizer keeps for itself.

    Args:
        tokens: the special tokens, as they are written.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        words = {token for token in tokens if len(token) > 1}
        self._pattern = re.compile(_any_of(words)) if words else None

    def as_text(self, text: str) -> str:
        """The text with every control token broken up, so that it stays text."""
        if self._pattern is None or self._pattern.search(text) is None:
            return text
        return self._pattern.sub(lambda found: f"{found[0][0]}{_BREAK}{found[0][1:]}", text)

    def to_scan(self, text: str) -> str:
        """What a scan must see: the text, and where there are control tokens, what is read without them, too."""
        if self._pattern is None or self._pattern.search(text) is None:
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
