"""What a worker is, as it says to callers, in spans and in metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsity.v1 import inference_pb2
from sparsity_serving.engines import ECHO

from sparsity_worker.config import ModelFacts, WorkerConfig

if TYPE_CHECKING:
    from sparsity_worker.engine.proof import Proof
    from sparsity_worker.profiles.tier_profile import TierProfile

TIERS = {
    "dense": inference_pb2.TIER_DENSE,
    "moderate": inference_pb2.TIER_MODERATE,
    "aggressive": inference_pb2.TIER_AGGRESSIVE,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What the worker says of itself.

    Attributes:
        config: its options.
        facts: its model.
        profile: of a sparse tier.
        proof: the start-up probe; None of an echo, which has nothing to prove.
        tokenizer_digest: SHA-256 of tokenizer.json, hexadecimal.
        markers: token ids around a reasoning span; none where the tokenizer lacks them.
        crossover: from where sparse attention is faster on the device, in words.
    """

    config: WorkerConfig
    facts: ModelFacts
    profile: TierProfile | None
    proof: Proof | None
    tokenizer_digest: str
    markers: tuple[int, ...] = ()
    crossover: str = ""

    @property
    def label(self) -> str:
        """Name and version of its profile; `dense` without one, and `echo` where nothing is attended."""
        without = ECHO if self.config.engine == ECHO else "dense"
        return self.profile.label if self.profile else without

    @property
    def densifies(self) -> bool:
        """Whether it can decode a reasoning span densely; what has no profile decodes none sparsely."""
        return self.profile is None or self.profile.densifies

    @property
    def tier(self) -> inference_pb2.Tier.ValueType:
        """The tier on the wire."""
        return TIERS[self.config.tier]
