"""What a worker is, as it says to callers, in spans and in metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.tiers import DENSE
from sparsity_serving.engines import ECHO

from sparsity_worker.config import ModelFacts, WorkerConfig

if TYPE_CHECKING:
    from sparsity_worker.engine.proof import Proof
    from sparsity_worker.profiles.tier_profile import TierProfile


def on_the_wire(tier: str) -> inference_pb2.Tier.ValueType:
    """A tier as messages have it, by its name."""
    return inference_pb2.Tier.Value(f"TIER_{tier.upper()}")


@dataclass(frozen=True, slots=True)
class ServedTier:
    """What the worker says of one of its tiers.

    Attributes:
        name: as options call it.
        label: name and version of its profile; `dense` without one, and `echo` where nothing is attended.
        profile: of a sparse tier.
        proof: its start-up probe; None of an echo, which has nothing to prove.
        crossover: from where sparse attention is faster on the device, in words.
    """

    name: str
    label: str = DENSE
    profile: TierProfile | None = None
    proof: Proof | None = None
    crossover: str = ""

    @property
    def tier(self) -> inference_pb2.Tier.ValueType:
        """The tier on the wire."""
        return on_the_wire(self.name)

    @property
    def densifies(self) -> bool:
        """Whether it can decode a reasoning span densely; what has no profile decodes none sparsely."""
        return self.profile is None or self.profile.densifies

    @property
    def sparse_from(self) -> int:
        """Prompts of fewer tokens are attended densely; 0 where all are."""
        return self.profile.sparse_from if self.profile else 0


def echoed(config: WorkerConfig) -> tuple[ServedTier, ...]:
    """The tiers of an echo: all alike, because none of them attends anything."""
    return tuple(ServedTier(name, ECHO) for name in config.tiers)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the worker says of itself.

    Attributes:
        config: its options.
        facts: its model.
        tiers: that it serves, the densest first.
        tokenizer_digest: SHA-256 of tokenizer.json, hexadecimal.
        markers: token ids around a reasoning span; none where the tokenizer lacks them.
    """

    config: WorkerConfig
    facts: ModelFacts
    tiers: tuple[ServedTier, ...]
    tokenizer_digest: str
    markers: tuple[int, ...] = ()
    _by_tier: Mapping[int, ServedTier] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for at every request.
        object.__setattr__(self, "_by_tier", {each.tier: each for each in self.tiers})

    @property
    def densest(self) -> ServedTier:
        """The tier of requests that ask for none."""
        return self.tiers[0]

    def asked(self, tier: inference_pb2.Tier.ValueType) -> ServedTier:
        """The tier that a request asks for.

        Raises:
            InvalidRequestError: naming `tier`, when it is not served.
        """
        if tier == inference_pb2.TIER_UNSPECIFIED:
            return self.densest
        found = self._by_tier.get(tier)
        if found is None:
            known = tier in inference_pb2.Tier.values()
            wanted = inference_pb2.Tier.Name(tier) if known else f"tier {tier}"
            serves = ", ".join(self.config.tiers)
            raise InvalidRequestError.of("tier", f"this worker serves {serves}, not {wanted}")
        return found
