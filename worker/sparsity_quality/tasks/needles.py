"""Needles in a haystack: single, one of many keys, many values of a key, many keys at once.

The kinds are those of RULER, arXiv 2404.06654.
"""

from __future__ import annotations

from random import Random

from sparsity_quality.tasks import corpus, words
from sparsity_quality.tasks.case import RESERVE, Case, Encode, Question, haystack

# Sentences of kinds that occur once each; what is asked is the beginning of the same sentence.
_SINGLE = (
    ("The password of the old library is", words.NOUNS),
    ("The ferry to the northern islands leaves from", words.CITIES),
    ("The prize for the best essay was won by", words.NAMES),
    ("The museum's new exhibition is about", words.SUBJECTS),
)
_KEYS, _VALUES, _QUERIES = 8, 3, 4


def needles(split: str, rng: Random, tokens: int, encode: Encode) -> Case:
    """Sentences to find again among paragraphs about something else."""
    singles = [(stem, rng.choice(options)) for stem, options in _SINGLE]
    names = words.keys(rng, _KEYS + 2)
    magic = {name: words.number(rng) for name in names[:_KEYS]}
    several = {name: [words.number(rng) for _ in range(_VALUES)] for name in names[_KEYS:]}
    sentences = [f"{stem} {answer}." for stem, answer in singles]
    sentences += [f"The magic number of the {name} is {value}." for name, value in magic.items()]
    sentences += [f"A lucky number of the {name} is {value}." for name, values in several.items() for value in values]
    rng.shuffle(sentences)
    questions = [Question("needle, single", f"\n{stem}", (answer,), "contains", 6, ".") for stem, answer in singles]
    questions += [
        Question("needle, one of many keys", f"\nThe magic number of the {name} is", (value,), "contains", 8, ".")
        for name, value in magic.items()
    ]
    for name, values in several.items():
        for last in range(_VALUES):
            told = [value for place, value in enumerate(values) if place != last]
            stems = "".join(f" A lucky number of the {name} is {value}." for value in told)
            prompt = f"\n{stems.strip()} A lucky number of the {name} is"
            questions.append(Question("needle, many values", prompt, (values[last],), "contains", 8, "."))
    for _ in range(_QUERIES):
        one, other = rng.sample(sorted(magic), 2)
        prompt = f"\nThe magic numbers of the {one} and of the {other} are, in this order,"
        questions.append(Question("needle, many keys at once", prompt, (magic[one], magic[other]), "recall", 20, "."))
    filler = corpus.shuffled(corpus.paragraphs(split), rng)
    return Case("needles", haystack(filler, sentences, tokens - RESERVE, encode, rng), tuple(questions))
