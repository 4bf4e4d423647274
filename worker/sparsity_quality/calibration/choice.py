"""The least density for what may be lost: one setting for every unit, by a price on loss.

Density and loss add up over units (heads, layers), so for any price each unit can choose alone, and the choices of one
price are the best of all that lose no more in total (Lagrange relaxation, Everett 1963). A higher price loses less.
"""

from __future__ import annotations

import torch

_LOW, _HIGH, _STEPS = -12.0, 12.0, 60


def at_price(density: torch.Tensor, loss: torch.Tensor, price: float) -> torch.Tensor:
    """The cheapest setting of each unit at a price, int64 ``[units]``.

    Args:
        density: float ``[units, settings]``.
        loss: same shape.
        price: what a unit of loss costs in density.
    """
    return (density + price * loss).argmin(1)


def total(values: torch.Tensor, choice: torch.Tensor) -> float:
    """The mean over units of what was chosen."""
    return float(values.gather(1, choice[:, None]).mean())


def least_density(density: torch.Tensor, loss: torch.Tensor, bound: float) -> torch.Tensor:
    """The choice of least density whose mean loss is at most ``bound``; of least loss when none is."""
    low, high = _LOW, _HIGH
    best = loss.argmin(1)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        choice = at_price(density, loss, 10**middle)
        if total(loss, choice) <= bound:
            best, high = choice, middle
        else:
            low = middle
    return best


def least_loss(density: torch.Tensor, loss: torch.Tensor, bound: float) -> torch.Tensor:
    """The choice of least loss whose mean density is at most ``bound``; of least density when none is."""
    return least_density(loss, density, bound)
