"""Windows to learn from, made of labelled texts: as prompts hold them, alone and among others of no risk."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from sparsity_policies.risk.corpus import HARMLESS, Labelled, Terms, labels

# Characters of the longest window to learn.
SIZE = 384
_SEED = 23
_TOGETHER = 3


def pieces(text: str) -> list[str]:
    """A text as windows of the model meet it: whole where it fits, else one window after the other."""
    if len(text) <= SIZE + SIZE // 4:
        return [text]
    starts = [*range(0, len(text) - SIZE, SIZE // 2), len(text) - SIZE]
    return [text[start : start + SIZE] for start in starts]


def windows(texts: Sequence[Labelled], among: int) -> list[tuple[str, str]]:
    """The domain, empty for none, and the text of every window to learn.

    Args:
        texts: labelled.
        among: times that each short text is shown among harmless ones of its language, too.
    """
    chance = random.Random(_SEED)
    harmless = _harmless(texts)
    found = []
    for labelled, (domain, text) in zip(texts, labels(texts), strict=True):
        found += [(domain, piece) for piece in pieces(text)]
        others = harmless[labelled.language]
        for _ in range(among if others else 0):
            # Of harmless texts together nobody knows which domain of low risk they are of: they teach high risk only.
            found.append((domain if labelled.domain != HARMLESS else "", within(text, others, chance)))
    return found


def term_lists(lists: Sequence[Terms], texts: Sequence[Labelled]) -> list[tuple[str, str]]:
    """The domain and a few terms at a time, alone and among harmless texts of their language."""
    chance = random.Random(_SEED)
    harmless = _harmless(texts)
    found = []
    for one in lists:
        domain = "" if one.domain == HARMLESS else one.domain
        others = harmless[one.language]
        for among in range(2 if others else 1):
            mixed = chance.sample(one.terms, len(one.terms))
            for at in range(0, len(mixed), _TOGETHER):
                text = "; ".join(mixed[at : at + _TOGETHER])
                found.append((domain, within(text, others, chance) if among else text))
    return found


def _harmless(texts: Sequence[Labelled]) -> dict[str, list[str]]:
    """Harmless texts by language."""
    found: dict[str, list[str]] = defaultdict(list)
    for labelled in texts:
        if labelled.domain == HARMLESS:
            found[labelled.language].append(labelled.text)
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
