"""Windows to learn from, made of labelled texts: as prompts hold them, alone, and among others of no risk."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sparsity_policies.risk.corpus import Labelled, labels

# Characters of the longest window to learn.
SIZE = 384


def pieces(text: str) -> list[str]:
    """A text as windows of the model meet it: whole where it fits, else one window after the other."""
    if len(text) <= SIZE + SIZE // 4:
        return [text]
    starts = [*range(0, len(text) - SIZE, SIZE // 2), len(text) - SIZE]
    return [text[start : start + SIZE] for start in starts]


def windows(texts: Sequence[Labelled]) -> list[tuple[str, str]]:
    """The domain, empty for none, and the text of every window to learn: each by itself, as windows of prompts are."""
    return [(domain, piece) for domain, text in labels(texts) for piece in pieces(text)]


def within(text: str, others: Sequence[str], chance: random.Random) -> str:
    """A window that holds ``text`` somewhere, where it fits, among ``others``."""
    room = max(SIZE - len(text), 0)
    before = chance.randint(0, room)
    head, tail = _filler(others, before, chance), _filler(others, room - before, chance)
    return f"{head[len(head) - before :]}\n{text[:SIZE]}\n{tail[: room - before]}"


def _filler(others: Sequence[str], size: int, chance: random.Random) -> str:
    text = ""
    while len(text) < size:
        text += chance.choice(others) + "\n"
    return text
