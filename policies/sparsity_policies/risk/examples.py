"""Windows to learn from, made of labelled texts: as prompts hold them, alone and among others of no risk."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from sparsity_policies.risk.corpus import HARMLESS, Labelled, labels
from sparsity_policies.risk.features import CHUNK
from sparsity_policies.risk.model import WINDOW

SIZE = WINDOW * CHUNK
_SEED = 23


def pieces(text: str) -> list[str]:
    """A text as windows of the model meet it: whole where it fits, else one window after the other."""
    if len(text) <= SIZE + CHUNK:
        return [text]
    starts = [*range(0, len(text) - SIZE, SIZE // 2), len(text) - SIZE]
    return [text[start : start + SIZE] for start in starts]


def windows(texts: Sequence[Labelled], among: int = 2) -> list[tuple[str, str]]:
    """The domain, empty for none, and the text of every window to learn.

    Args:
        texts: labelled.
        among: times that each short text is shown among harmless ones of its language, too.
    """
    chance = random.Random(_SEED)
    harmless: dict[str, list[str]] = defaultdict(list)
    for labelled in texts:
        if labelled.domain == HARMLESS:
            harmless[labelled.language].append(labelled.text)
    found = []
    for labelled, (domain, text) in zip(texts, labels(texts), strict=True):
        found += [(domain, piece) for piece in pieces(text)]
        others = harmless[labelled.language]
        for _ in range(among if others else 0):
            # Of harmless texts together nobody knows which domain of low risk they are of: they teach high risk only.
            found.append((domain if labelled.domain != HARMLESS else "", within(text, others, chance)))
    return found


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
