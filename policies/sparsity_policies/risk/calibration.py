"""From margins to probabilities (Platt, Advances in Large Margin Classifiers, 1999).

Targets keep off 0 and 1 (Lin, Lin and Weng, Machine Learning 68, 2007).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Of all prompts so many hold a window of one high-risk domain, as far as anybody knows.
PRIOR: Final = 0.2
_STEPS: Final = 100


class Platt(NamedTuple):
    """Log odds are ``slope * margin + intercept``."""

    slope: float
    intercept: float


def platt(margins: NDArray[np.float64], labels: NDArray[np.bool_], prior: float = PRIOR) -> Platt:
    """Fits the odds that a margin stands for, where ``prior`` of all texts are of the domain.

    Args:
        margins: of texts that were not learnt, (n,).
        labels: which of them are of the domain, (n,); both kinds must be there.
        prior: share of the domain among what will be asked.

    Raises:
        ValueError: when there is one kind only.
    """
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        raise ValueError("texts of the domain and others are needed to calibrate it")
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    masses = np.where(labels, prior / positive, (1 - prior) / negative)
    # The odds of equal masses are easier to fit, and the prior only moves them.
    even = np.where(labels, 0.5 / positive, 0.5 / negative)
    inputs = np.stack((margins, np.ones_like(margins)), axis=1)
    found = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        chances = 1.0 / (1.0 + np.exp(-np.clip(inputs @ found, -30, 30)))
        gradient = inputs.T @ (even * (chances - targets)) + 1e-4 * np.array([found[0] - 1.0, 0.0])
        curvature = (inputs * (even * chances * (1 - chances))[:, None]).T @ inputs + np.diag([1e-4, 1e-9])
        step = np.linalg.solve(curvature, gradient)
        found = found - np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-8:
            break
    shift = float(np.log(masses[labels].sum() / masses[~labels].sum()))
    return Platt(float(max(found[0], 1e-3)), float(found[1]) + shift)
