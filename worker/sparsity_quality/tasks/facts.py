"""Facts strewn over a long text: passage questions, key findings to sum up, variables to follow."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from sparsity_quality.tasks import corpus, words
from sparsity_quality.tasks.case import RESERVE, Case, Encode, Question, haystack

_PEOPLE, _FINDINGS, _CHAIN = 6, 4, 3


def facts(split: str, rng: Random, tokens: int, encode: Encode) -> Case:
    """People to ask about, findings to recall in a summary, and assignments that lead from one variable to the next."""
    names = [
        f"{one} {other}" for one, other in zip(rng.sample(words.NAMES, 10), rng.sample(words.SURNAMES, 10), strict=True)
    ]
    cities = dict(zip(names, rng.sample(words.CITIES, len(names)), strict=True))
    subjects = dict(zip(names, rng.sample(words.SUBJECTS, len(names)), strict=True))
    sentences = [f"{name} lives in {cities[name]} and writes books about {subjects[name]}." for name in names[:_PEOPLE]]
    questions = []
    for name in names[:_PEOPLE]:
        where = f"\nQuestion: In which city does {name} live?\nAnswer: {name} lives in"
        questions.append(Question("passage questions", where, (cities[name],), "contains", 5))
        what = f"\nQuestion: What does {name} write about?\nAnswer: {name} writes books about"
        questions.append(Question("passage questions", what, (subjects[name],), "contains", 8))
    found = [(key, words.number(rng)) for key in words.keys(rng, _FINDINGS)]
    sentences += [f"Key finding: the {key} project saved {value} euros." for key, value in found]
    for number in rng.sample(range(_FINDINGS), 2):
        (told, saved), rest = found[number], found[:number] + found[number + 1 :]
        summary = f"\nSummary of this report.\nKey finding: the {told} project saved {saved} euros.\nKey finding: the"
        wanted = tuple(part for key, value in rest for part in (key, value))
        questions.append(Question("summary, key facts", summary, wanted, "recall", 60, "\n\n"))
    letters = rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 2 * _CHAIN)
    for chain in (letters[:_CHAIN], letters[_CHAIN:]):
        value = words.number(rng)
        sentences.append(f"VAR {chain[0]}1 = {value}.")
        sentences += [f"VAR {later}1 = VAR {former}1." for former, later in pairwise(chain)]
        prompt = f"\nThe variables that have the value {value} are VAR"
        questions.append(Question("variable tracking", prompt, tuple(f"{name}1" for name in chain), "recall", 16))
    # The links of a chain may lie in any order but the first: what follows may stand before what it follows.
    rng.shuffle(sentences)
    filler = corpus.shuffled(corpus.paragraphs(split), rng)
    return Case("facts", haystack(filler, sentences, tokens - RESERVE, encode, rng), tuple(questions))
