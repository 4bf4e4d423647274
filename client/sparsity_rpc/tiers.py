"""The tiers of attention, as every part of ours names them."""

from __future__ import annotations

from enum import IntEnum

from sparsity.v1 import inference_pb2


class Tier(IntEnum):
    """How much attention; a larger number is sparser. Values equal `sparsity.v1.Tier`."""

    DENSE = 1
    MODERATE = 2
    AGGRESSIVE = 3

    @property
    def word(self) -> str:
        """The tier as documents spell it."""
        return self.name.lower()

    @property
    def wire(self) -> inference_pb2.Tier.ValueType:
        """The tier as messages have it."""
        return inference_pb2.Tier.ValueType(self.value)


TIERS = tuple(tier.word for tier in Tier)
"""As documents spell them, the densest first."""
DENSE, SPARSE = TIERS[0], TIERS[1:]
