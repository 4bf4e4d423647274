"""Learns the shipped model of risk from shipped texts and exemplars; with --check, fails when a file is of others.

The files hold the digest of what they were learnt from: learning takes two minutes, reading each text for the second
opinion twenty minutes of a core, comparing none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Final

import numpy as np
from opinion_net import learnt_line, learnt_net
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.risk import base, corpus, lexicon, opinion
from sparsity_policies.risk.corpus import Labelled
from sparsity_policies.risk.features import key_of
from sparsity_policies.risk.model import RiskModel
from sparsity_router.prompts.opinion.encoder import Encoder
from sparsity_router.prompts.opinion.model_file import fetched
from word_vectors import WordVectors, word_vectors

ROOT = Path(__file__).resolve().parent.parent
_AT_ONCE: Final = 16
FOLDER = ROOT / "policies" / "sparsity_policies" / "risk"


def exemplars() -> dict[str, tuple[str, ...]]:
    """Of the shipped policies, by domain."""
    return {p.domain: p.detection.exemplars for p in shipped_policies("standard") if p.detection.exemplars}


def stale() -> list[str]:
    """What the file was not learnt from, in words."""
    found = []
    if base.base().data != corpus.shipped_digest():
        found.append("the shipped texts have changed")
    if opinion.second().data != corpus.shipped_digest():
        found.append("the second opinion is of other texts")
    if dict(base.base().exemplars) != exemplars():
        found.append("the exemplars of the shipped policies have changed")
    return found


def save_lexicon(known: WordVectors) -> None:
    """Writes the words by which texts are read from now on."""
    keys = [key_of(word, inner) for word, inner in zip(known.words, known.inner, strict=True)]
    np.save(FOLDER / lexicon.FILE, np.array(keys, np.uint64))
    lexicon.lexicon.cache_clear()


def save_opinion(model: RiskModel, train: Sequence[Labelled], calibration: Sequence[Labelled]) -> None:
    """Writes the net of the second opinion, and how it counts beside ``model``."""
    encoder = Encoder(fetched())

    def vectors(texts: Sequence[Labelled]) -> opinion.Floats:
        found = np.empty((len(texts), encoder.width), np.float32)
        # Texts of one length are read together.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number].text))
        for at in range(0, len(order), _AT_ONCE):
            rows = order[at : at + _AT_ONCE]
            read = encoder.vectors([texts[row].text for row in rows])
            assert read is not None, "there was no limit of time"
            found[rows] = read
        return found

    net = learnt_net(vectors(train), [one.domain for one in train])
    told = net.odds(vectors(calibration)).astype(np.float64)
    first, second, labels = [], [], []
    for one, odds in zip(calibration, told, strict=True):
        for domain, window in model.scores(one.text, corpus.RISKY).peaks.items():
            # Another domain's text says nothing of a domain: it may be of both.
            if one.domain in (domain, corpus.HARMLESS):
                first.append(log_odds(window.probability))
                second.append(odds[corpus.RISKY.index(domain)])
                labels.append(one.domain == domain)
    line = learnt_line(np.array(first), np.array(second), np.array(labels))
    opinion.save(FOLDER / opinion.FILE, opinion.Second(net, line, corpus.shipped_digest()))


def log_odds(chance: float) -> float:
    """Of a probability, within reason."""
    held = min(max(chance, 1e-9), 1 - 1e-9)
    return log(held / (1 - held))


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
    base.base.cache_clear()
    save_opinion(base.base().model, train, calibration)


if __name__ == "__main__":
    main()
