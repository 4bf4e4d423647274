"""A function to copy out of a long source file."""

from __future__ import annotations

from random import Random

from sparsity_quality.tasks import corpus, words
from sparsity_quality.tasks.case import RESERVE, Case, Encode, Question, haystack

_SYMBOLS = 8


def code(split: str, rng: Random, tokens: int, encode: Encode) -> Case:
    """Small functions among real source code; the model is given a name and must write the definition."""
    found = []
    for key in words.keys(rng, _SYMBOLS):
        name, (one, other) = key.replace(" ", "_"), rng.sample(words.NOUNS, 2)
        factor, offset = rng.randrange(10, 100), rng.randrange(100, 1000)
        found.append((f"def {name}(", f"{one}, {other}):\n    return {one} * {factor} - {other} * {offset}"))
    sources = [head + rest + "\n" for head, rest in found]
    filler = corpus.shuffled(corpus.functions(split), rng)
    context = haystack(filler, sources, tokens - RESERVE, encode, rng, joint="\n\n")
    questions = [Question("code symbol", f"\n\n{head}", (rest,), "prefix", 30, "\n\n") for head, rest in found]
    return Case("code", context, tuple(questions))
