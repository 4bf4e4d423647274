"""Reads parts of prompts by encoder and net."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

from sparsity_policies.risk.opinion import Opinions, second

from sparsity_router.prompts.opinion.encoder import Encoder


class Reader:
    """Tells what parts of a text are like, by what they mean.

    Args:
        path: of the model file.

    Raises:
        ValueError: when it is none.
    """

    def __init__(self, path: Path) -> None:
        self._encoder = Encoder(path)
        self._net = second().net

    def read(self, texts: Sequence[str], until: float = inf) -> Opinions | None:
        """Log odds of each risky domain, by text; None when ``until``, seconds since the epoch, passes first."""
        if not texts:
            return {}
        vectors = self._encoder.vectors(texts, until)
        if vectors is None:
            return None
        odds = self._net.odds(vectors).tolist()
        return {text: tuple(told) for text, told in zip(texts, odds, strict=True)}
