"""Heads from labelled texts: logistic regression by stochastic gradients with a rate of its own for each weight.

Adagrad (Duchi, Hazan and Singer, JMLR 2011). The order is drawn from a fixed seed: the same
texts give the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import ROWS, codes_of, rows_of
from sparsity_policies.risk.model import length_norm

_RATE: Final = 0.15
_DECAY: Final = 2e-4
_SMOOTH: Final = 1e-4
# Of a text of one risky domain the others' heads learn little: a lawsuit over a treatment is of both.
_OTHER_RISK: Final = 0.1
_SEED: Final = 23


class Features(NamedTuple):
    """A text as it is learnt from.

    Attributes:
        rows: each once.
        values: how often, by the length of the text.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


class Learnt(NamedTuple):
    """What came of it.

    Attributes:
        weights: (ROWS, heads) float32.
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
) -> Learnt:
    """Trains a head for each domain, one against the rest.

    Args:
        examples: domain and features of each text.
        domains: of the heads, in order.
        risky: those among them whose texts are hardly taken for counterexamples of each other.
        epochs: times that every text is looked at.
        known: weights to go on from.
    """
    width = len(domains)
    if known is None:
        known = Learnt(np.zeros((ROWS, width), np.float32), np.full(width, -2.0, np.float32))
    weights, biases = known.weights.copy(), known.biases.copy()
    common = _commonness([features for _, features in examples]) if known is None else np.ones(ROWS, np.float32)
    weights /= common[:, None]
    targets, masses = _targets([domain for domain, _ in examples], domains, risky)
    seen = np.full((ROWS, width), _SMOOTH, np.float32)
    seen_bias = np.full(width, 1.0, np.float32)
    chance = np.random.default_rng(_SEED)
    for epoch in range(epochs):
        rate = np.float32(_RATE / (1.0 + 2.0 * epoch / epochs))
        for number in chance.permutation(len(examples)):
            rows, values = examples[number][1]
            values = values * common[rows]
            own = weights[rows]
            margins = values @ own + biases
            errors = (1.0 / (1.0 + np.exp(-margins)) - targets[number]) * masses[number]
            slopes = values[:, None] * errors[None, :].astype(np.float32)
            squares = seen[rows] + slopes * slopes
            seen[rows] = squares
            weights[rows] = own * np.float32(1.0 - _DECAY) - rate * slopes / np.sqrt(squares)
            seen_bias += (errors * errors).astype(np.float32)
            biases -= (rate * errors / np.sqrt(seen_bias)).astype(np.float32)
    return Learnt(weights * common[:, None], biases)


def _commonness(texts: Sequence[Features]) -> NDArray[np.float32]:
    """By row, inverse document frequency about one: what every text has says little (Sparck Jones, 1972)."""
    counts = np.zeros(ROWS)
    for text in texts:
        counts[text.rows] += 1
    found = np.log((len(texts) + 1) / (counts + 0.5))
    found /= found[counts > 0].mean()
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
