"""What a calibration is to reach: `coverage=0.97`, `perplexity=1.01`, `divergence=0.02` or `density=0.22`."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity_rpc.errors import ConfigurationError

_RANGES = {
    "coverage": (0.5, 1.0, "the share of softmax mass to keep, by estimate"),
    "perplexity": (1.0, 2.0, "times dense attention's"),
    "divergence": (0.0, 5.0, "nats from dense attention's distribution"),
    "density": (0.01, 1.0, "attended over causal pairs, at the longest text"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound.

    Attributes:
        name: one of the four.
        value: at least, for coverage; at most, for the others.
    """

    name: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads `name=value`.

        Raises:
            ConfigurationError: naming what is wrong.
        """
        name, _, number = text.partition("=")
        if name not in _RANGES:
            raise ConfigurationError(f"--target: must be one of {', '.join(_RANGES)}, as coverage=0.97; not {text!r}")
        low, high, meaning = _RANGES[name]
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not low <= value <= high:
            raise ConfigurationError(f"--target: {name} is {meaning}; must lie in [{low}, {high}], not {number!r}")
        return cls(name, value)
