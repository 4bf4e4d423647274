"""The generated tasks: functions of a split, a random state, a length in tokens and a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

from sparsity_quality.tasks.case import Case, Encode
from sparsity_quality.tasks.code import code
from sparsity_quality.tasks.facts import facts
from sparsity_quality.tasks.frequencies import frequencies
from sparsity_quality.tasks.labels import labels
from sparsity_quality.tasks.needles import needles

FAMILIES: dict[str, Callable[[str, Random, int, Encode], Case]] = {
    family.__name__: family for family in (needles, facts, code, labels, frequencies)
}


def generate(family: str, split: str, seed: int, sample: int, tokens: int, encode: Encode) -> Case:
    """The same case for the same arguments, in every process and on every machine with the same text.

    Args:
        family: a name of :data:`FAMILIES`.
        split: a name of :data:`sparsity_quality.tasks.corpus.SPLITS`.
        seed: of the whole suite.
        sample: number of the case.
        tokens: context, question and answer together.
        encode: text to token ids, without special tokens.
    """
    state = hashlib.sha256(f"{family}/{split}/{seed}/{sample}/{tokens}".encode()).digest()
    return FAMILIES[family](split, Random(state), tokens, encode)
