"""Length bands of a model that has its own, in the place of those that policies took from the band set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sparsity_policies.model import Band, Policy, Risk

Bands = Mapping[Risk, tuple[Band, ...]]


@dataclass(frozen=True, slots=True)
class ModelBands:
    """What a router's operator says of lengths, model by model.

    Attributes:
        taken: the band set; a policy whose bands are others has bands of its own, and keeps them.
        own: by model, then by risk; a risk that is not there keeps the policies' bands.
    """

    taken: Bands = field(default_factory=dict)
    own: Mapping[str, Bands] = field(default_factory=dict)

    def of(self, policy: Policy, model: str) -> tuple[Band, ...]:
        """A policy's bands for requests of a model."""
        own = self.own.get(model, {}).get(policy.risk)
        return policy.bands if own is None or policy.bands != self.taken.get(policy.risk) else own

    def content(self) -> object:
        """What tells them from others, as JSON has it."""
        return [[model, [_plain(self.taken), _plain(bands)]] for model, bands in sorted(self.own.items())]


def _plain(bands: Bands) -> object:
    return [[risk, [[band.from_tokens, band.tier, band.task] for band in own]] for risk, own in sorted(bands.items())]


NO_BANDS: Final = ModelBands()
