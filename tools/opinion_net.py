"""Learns the net of the second opinion from vectors of the shipped texts, and how its word counts.

AdamW (Loshchilov and Hutter, ICLR 2019) with dropout; several nets, whose mean is one net as wide as all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sparsity_policies.risk.calibration import PRIOR
from sparsity_policies.risk.corpus import RISKY
from sparsity_policies.risk.opinion import Floats, Line, Net

_UNITS: Final = 256
_NETS: Final = 3
_EPOCHS: Final = 25
_BATCH: Final = 256
_RATE: Final = 2e-3
_DECAY: Final = 0.1
_DROPPED: Final = 0.4
_SEED: Final = 23


def learnt_net(vectors: Floats, domains: Sequence[str]) -> Net:
    """The net of texts.

    Args:
        vectors: of each text, (texts, numbers).
        domains: of each.
    """
    middle, scales = vectors.mean(axis=0), 1 / np.maximum(vectors.std(axis=0), np.float32(1e-6))
    inputs = (vectors - middle) * scales
    targets = np.array([[domain == risky for risky in RISKY] for domain in domains], np.float32)
    found = [_one(inputs, targets, np.random.default_rng(_SEED + number)) for number in range(_NETS)]
    hidden, hidden_bias, out, out_bias = ([net[part] for net in found] for part in range(4))
    mean = np.float32(1 / _NETS)
    return Net(
        middle,
        scales,
        np.concatenate(hidden, axis=1),
        np.concatenate(hidden_bias),
        np.concatenate(out) * mean,
        sum(out_bias[1:], out_bias[0]) * mean,
    )


def _one(inputs: Floats, targets: Floats, chance: np.random.Generator) -> list[Floats]:
    shapes = ((inputs.shape[1], _UNITS), (_UNITS,), (_UNITS, targets.shape[1]), (targets.shape[1],))
    weights = [
        chance.uniform(-bound, bound, shape).astype(np.float32)
        for shape, bound in zip(shapes, np.repeat((inputs.shape[1] ** -0.5, _UNITS**-0.5), 2), strict=True)
    ]
    first, second = ([np.zeros_like(part) for part in weights] for _ in range(2))
    step, steps = 0, _EPOCHS * -(-len(inputs) // _BATCH)
    for _ in range(_EPOCHS):
        order = chance.permutation(len(inputs))
        for start in range(0, len(order), _BATCH):
            step += 1
            rows = order[start : start + _BATCH]
            rate = _RATE * (1 + np.cos(np.pi * step / steps)) / 2
            for part, slope in enumerate(_slopes(weights, inputs[rows], targets[rows], chance)):
                first[part] += 0.1 * (slope - first[part])
                second[part] += 0.001 * (slope * slope - second[part])
                move = first[part] / (1 - 0.9**step) / (np.sqrt(second[part] / (1 - 0.999**step)) + 1e-8)
                weights[part] = np.asarray(weights[part] * (1 - rate * _DECAY) - rate * move, np.float32)
    return weights


def _slopes(weights: list[Floats], inputs: Floats, targets: Floats, chance: np.random.Generator) -> list[Floats]:
    hidden, hidden_bias, out, out_bias = weights
    margins = inputs @ hidden + hidden_bias
    kept = (chance.random(margins.shape, np.float32) >= _DROPPED) / np.float32(1 - _DROPPED)
    units = np.maximum(margins, 0) * kept
    errors = (1 / (1 + np.exp(-np.clip(units @ out + out_bias, -50, 50))) - targets) / np.float32(targets.size)
    back = errors @ out.T * kept * (margins > 0)
    return [inputs.T @ back, back.sum(axis=0), units.T @ errors, errors.sum(axis=0)]


def learnt_line(first: NDArray[np.float64], second: NDArray[np.float64], labels: NDArray[np.bool_]) -> Line:
    """How both words count together, by logistic regression, where a fifth of what is asked is of a domain.

    Args:
        first: log odds by the linear model, of texts that were not learnt, (n,).
        second: by the net, (n,).
        labels: which texts are of the domain, (n,).
    """
    inputs = np.stack((first, second, np.ones_like(first)), axis=1)
    masses = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    found = np.zeros(3)
    for _ in range(50):
        chances = 1 / (1 + np.exp(-np.clip(inputs @ found, -30, 30)))
        curvature = (inputs * (masses * chances * (1 - chances))[:, None]).T @ inputs + 1e-4 * np.eye(3)
        found -= np.linalg.solve(curvature, inputs.T @ (masses * (chances - labels)) + 1e-4 * found)
    return Line(float(found[0]), float(found[1]), float(found[2] + log(PRIOR / (1 - PRIOR))))
