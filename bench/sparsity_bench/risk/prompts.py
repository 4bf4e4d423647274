"""Prompts of 5,000 tokens made of held-out texts: harmless ones, and among them one that is not."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from sparsity_policies.risk.corpus import HARMLESS, Labelled

TOKENS: Final = 5000
# Near misses in one prompt; what else it holds repeats them, and adds length alone.
DISTINCT: Final = 8
# Of a script that writes a word in one or two characters, tokens are as long.
_CHARACTERS_A_TOKEN: Final = {"zh": 1.2, "ja": 1.3}
_OTHERWISE: Final = 4.0
_SEED: Final = 41


class LongPrompt(NamedTuple):
    """A prompt.

    Attributes:
        language: of its texts.
        text: of it.
        risky: the text in its middle that is of a high-risk domain; None where there is none.
    """

    language: str
    text: str
    risky: Labelled | None


def harmless(texts: Sequence[Labelled], each: int, distinct: int) -> list[LongPrompt]:
    """``each`` prompts of every language, of ``distinct`` texts each, with no risky word meant as one: near misses."""
    chance = random.Random(_SEED)
    return [
        LongPrompt(language, "\n\n".join(_filler(those, language, chance, distinct)), None)
        for language, those in sorted(_by_language(texts).items())
        for _ in range(each)
    ]


def risky(texts: Sequence[Labelled]) -> list[LongPrompt]:
    """A prompt for every risky text, which stands in its middle."""
    chance = random.Random(_SEED)
    by_language = _by_language(texts)
    found = []
    for one in texts:
        if one.domain != HARMLESS:
            parts = _filler(by_language[one.language], one.language, chance, DISTINCT)
            parts.insert(len(parts) // 2, one.text)
            found.append(LongPrompt(one.language, "\n\n".join(parts), one))
    return found


def _by_language(texts: Sequence[Labelled]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one in texts:
        if one.domain == HARMLESS:
            found[one.language].append(one.text)
    return found


def _filler(texts: Sequence[str], language: str, chance: random.Random, distinct: int) -> list[str]:
    size = TOKENS * _CHARACTERS_A_TOKEN.get(language, _OTHERWISE)
    chosen = chance.sample(texts, min(distinct, len(texts)))
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        parts += chance.sample(chosen, len(chosen))
    while len(parts) > 1 and sum(map(len, parts)) - len(parts[-1]) > size:
        parts.pop()
    return parts
