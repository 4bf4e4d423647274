"""Frequent words: a list in which one word comes far more often than all others (after RULER, arXiv 2404.06654)."""

from __future__ import annotations

from random import Random

from sparsity_quality.tasks import words
from sparsity_quality.tasks.case import RESERVE, Case, Encode, Question

_SHARE = 0.3
_PROMPTS = (
    "\nQuestion: Which word occurs most often in the list?\nAnswer: The most frequent word is",
    "\nThe word that the list repeats more often than any other is",
    "\nMost common word of the list:",
)


def frequencies(split: str, rng: Random, tokens: int, encode: Encode) -> Case:
    """Words in a row; one makes up about a third of them, all others a thirtieth each."""
    del split
    frequent, *rare = rng.sample(words.NOUNS, len(words.NOUNS))
    context = encode("A list of words:")
    while len(context) < tokens - RESERVE:
        context += encode(f" {frequent if rng.random() < _SHARE else rng.choice(rare)}")
    questions = tuple(Question("frequent words", prompt, (frequent,), "contains", 6) for prompt in _PROMPTS)
    return Case("frequencies", tuple(context[: tokens - RESERVE]), questions)
