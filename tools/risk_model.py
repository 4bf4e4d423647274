"""Learns the shipped model of risk from shipped texts and exemplars; with --check, fails when the file is of others.

The file holds the digest of what it was learnt from: learning takes half a minute, comparing it none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.risk import base, corpus, lexicon
from sparsity_policies.risk.features import key_of
from word_vectors import WordVectors, word_vectors

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "policies" / "sparsity_policies" / "risk"


def exemplars() -> dict[str, tuple[str, ...]]:
    """Of the shipped policies, by domain."""
    return {p.domain: p.detection.exemplars for p in shipped_policies("standard") if p.detection.exemplars}


def stale() -> list[str]:
    """What the file was not learnt from, in words."""
    found = []
    if base.base().data != corpus.shipped_digest():
        found.append("the shipped texts have changed")
    if dict(base.base().exemplars) != exemplars():
        found.append("the exemplars of the shipped policies have changed")
    return found


def save_lexicon(known: WordVectors) -> None:
    """Writes the words by which texts are read from now on."""
    keys = [key_of(word, inner) for word, inner in zip(known.words, known.inner, strict=True)]
    np.save(FOLDER / lexicon.FILE, np.array(keys, np.uint64))
    lexicon.lexicon.cache_clear()


def main() -> None:
    """Writes the file, or checks it."""
    if "--check" in sys.argv:
        if problems := stale():
            sys.exit(f"{'; '.join(problems)}: run `make risk-model`")
        return
    train, calibration = corpus.shipped("train"), corpus.shipped("calibration")
    known = word_vectors()
    save_lexicon(known)
    model = base.learnt(train, calibration, exemplars(), known.vectors)
    base.save(FOLDER / base.FILE, model, exemplars(), corpus.shipped_digest())


if __name__ == "__main__":
    main()
