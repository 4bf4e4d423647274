"""Whose turn it is among tiers that share workers: dense first, then the sparse tier that has had the least.

Start-time fair queueing over tokens (Goyal, Vin, Cheng, SIGCOMM 1996), as among the tenants of one tier: a tier that is
flooded waits behind one that asks for little.
"""

from __future__ import annotations

from sparsity_policies.model import Tier


class TierTurns:
    """Turns of all tiers."""

    def __init__(self) -> None:
        # Tokens: the start tag of what had its turn last, and where each tier's next request may start.
        self._now = 0
        self._next = dict.fromkeys(Tier, 0)

    def had(self, tier: Tier, tokens: int) -> None:
        """A waiting request of ``tier`` was sent, for so many tokens."""
        if tier is not Tier.DENSE:
            self._now = max(self._now, self._next[tier])
            self._next[tier] = self._now + tokens

    def order(self) -> list[Tier]:
        """The tiers, whose turn it is first: what policy holds dense has nowhere else to go; no turn is saved up."""
        return sorted(Tier, key=lambda tier: (tier is not Tier.DENSE, max(self._now, self._next[tier]), tier))
