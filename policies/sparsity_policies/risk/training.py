"""Heads from labelled texts: logistic regression by stochastic gradients with a rate of its own for each weight.

Adagrad (Duchi, Hazan and Singer, JMLR 2011). The order is drawn from a fixed seed: the same
texts give the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import ROWS, codes_of, rows_of, width
from sparsity_policies.risk.model import length_norm

_RATE: Final = 0.15
_DECAY: Final = 5e-5
_SMOOTH: Final = 1e-4
# Of a text of one risky domain the others' heads learn little: a lawsuit over a treatment is of both.
_OTHER_RISK: Final = 0.03
# How much a number of what a text means counts beside an n-gram, were both as common.
_MEANING: Final = 1.0
_SEED: Final = 23


Vectors = NDArray[np.float32]


class Features(NamedTuple):
    """A text as it is learnt from.

    Attributes:
        rows: each once.
        values: how often, by the length of the text.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]

    def own(self) -> Features:
        """Those that are no words of the lexicon."""
        hashed = self.rows < ROWS
        return Features(self.rows[hashed], self.values[hashed])


class Learnt(NamedTuple):
    """What came of it.

    Attributes:
        weights: (rows in all, heads) float32.
        biases: (heads,) float32.
    """

    weights: NDArray[np.float32]
    biases: NDArray[np.float32]


def features_of(text: str) -> Features:
    """A text's features as a window of that length has them."""
    codes = codes_of(text)
    rows, counts = np.unique(rows_of(codes), return_counts=True)
    return Features(rows.astype(np.int64), (counts / length_norm(float(len(codes)))).astype(np.float32))


def learn(
    examples: Sequence[tuple[str, Features]],
    domains: Sequence[str],
    risky: frozenset[str],
    epochs: int,
    known: Learnt | None = None,
    vectors: Vectors | None = None,
) -> Learnt:
    """Trains a head for each domain, one against the rest.

    Args:
        examples: domain and features of each text.
        domains: of the heads, in order.
        risky: those among them whose texts are hardly taken for counterexamples of each other.
        epochs: times that every text is looked at.
        known: weights to go on from.
        vectors: what each word of the lexicon means, (words, dimensions): what is learnt of a word is then learnt of
            all that mean the like, in any language. None learns words one by one.
    """
    heads = len(domains)
    if known is None:
        known = Learnt(np.zeros((width(), heads), np.float32), np.full(heads, -2.0, np.float32))
        common = _commonness([features for _, features in examples])
    else:
        common = np.ones(width(), np.float32)
    weights, biases = known.weights / common[:, None], known.biases.copy()
    meant = _Meaning.of([features for _, features in examples], vectors)
    shown = [features.own() if vectors is not None else features for _, features in examples]
    targets, masses = _targets([domain for domain, _ in examples], domains, risky)
    seen = np.full(weights.shape, _SMOOTH, np.float32)
    directions = np.zeros((meant.texts.shape[1], heads), np.float32)
    seen_directions = np.full(directions.shape, _SMOOTH, np.float32)
    seen_bias = np.full(heads, 1.0, np.float32)
    chance = np.random.default_rng(_SEED)
    for epoch in range(epochs):
        rate = np.float32(_RATE / (1.0 + 2.0 * epoch / epochs))
        for number in chance.permutation(len(examples)):
            rows, values = shown[number]
            values = values * common[rows]
            own, meaning = weights[rows], meant.texts[number]
            margins = values @ own + meaning @ directions + biases
            errors = (1.0 / (1.0 + np.exp(-np.clip(margins, -50.0, 50.0))) - targets[number]) * masses[number]
            slopes = values[:, None] * errors[None, :].astype(np.float32)
            squares = seen[rows] + slopes * slopes
            seen[rows] = squares
            weights[rows] = own * np.float32(1.0 - _DECAY) - rate * slopes / np.sqrt(squares)
            slopes = meaning[:, None] * errors[None, :].astype(np.float32)
            seen_directions += slopes * slopes
            directions *= np.float32(1.0 - _DECAY)
            directions -= rate * slopes / np.sqrt(seen_directions)
            seen_bias += (errors * errors).astype(np.float32)
            biases -= (rate * errors / np.sqrt(seen_bias)).astype(np.float32)
    weights *= common[:, None]
    if vectors is not None:
        weights[ROWS:] = vectors @ (meant.scales[:, None] * directions)
        biases -= (meant.middle * meant.scales) @ directions
    return Learnt(weights, biases)


class _Meaning(NamedTuple):
    """What texts mean.

    Attributes:
        texts: sums of the vectors of their words, each dimension about its middle and as wide as the others, (texts,
            dimensions) float32; without vectors there are none.
        middle: of each dimension.
        scales: by which they were made as wide.
    """

    texts: Vectors
    middle: Vectors
    scales: Vectors

    @classmethod
    def of(cls, texts: Sequence[Features], vectors: Vectors | None) -> _Meaning:
        """The meaning of texts by the vectors of the lexicon's words."""
        if vectors is None:
            return cls(np.zeros((len(texts), 0), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
        sums = np.empty((len(texts), vectors.shape[1]), np.float32)
        for number, (rows, values) in enumerate(texts):
            words = rows >= ROWS
            sums[number] = values[words] @ vectors[rows[words] - ROWS]
        middle = sums.mean(axis=0)
        scales = np.float32(_MEANING) / np.maximum(sums.std(axis=0), np.float32(1e-6))
        return cls((sums - middle) * scales, middle, scales)


def _commonness(texts: Sequence[Features]) -> NDArray[np.float32]:
    """By row, inverse document frequency about one: what every text has says little (Sparck Jones, 1972)."""
    counts = np.zeros(width())
    for text in texts:
        counts[text.rows] += 1
    found = np.log((len(texts) + 1) / (counts + 0.5))
    found /= found[:ROWS][counts[:ROWS] > 0].mean()
    return np.clip(found, 0.05, 2.0).astype(np.float32)


def _targets(
    labels: Sequence[str], domains: Sequence[str], risky: frozenset[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What each head should say of each text, and how much that counts: the few of a domain as much as the others."""
    counts: Mapping[str, int] = {domain: labels.count(domain) for domain in domains}
    targets = np.array([[label == domain for domain in domains] for label in labels], np.float32)
    masses = np.ones_like(targets)
    for column, domain in enumerate(domains):
        share = min(max(len(labels) / max(counts[domain], 1) / 4, 1.0), 8.0)
        for row, label in enumerate(labels):
            if label == domain:
                masses[row, column] = share
            elif domain in risky and label in risky:
                masses[row, column] = _OTHER_RISK
    return targets, masses
