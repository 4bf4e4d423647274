"""What one attention call attended, as counted by the kernel that did it."""

from __future__ import annotations

from typing import NamedTuple


class AttentionStats(NamedTuple):
    """Counters of one attention call over one sequence and layer.

    Attributes:
        attended: (query, key) pairs attended exactly, summed over query heads.
        causal: pairs that dense causal attention attends, summed over query heads.
        coverage: estimated share of the softmax mass on the attended keys, in [0, 1], mean over query rows and heads.
        rows: query rows behind ``coverage``, summed over query heads.
        measured: the same share, measured on a few rows against every key.
        measured_rows: query rows behind ``measured``; 0 where nothing was measured.
    """

    attended: int
    causal: int
    coverage: float
    rows: int
    measured: float = 1.0
    measured_rows: int = 0

    @property
    def density(self) -> float:
        """Attended over causal pairs; 1.0 for an empty call."""
        return self.attended / self.causal if self.causal else 1.0


def causal_pairs(queries: int, prefix: int) -> int:
    """Pairs of ``queries`` rows that follow ``prefix`` cached tokens under the causal mask."""
    return queries * prefix + queries * (queries + 1) // 2
