"""What attention costs: floating-point operations and bytes of keys and values, from lengths, shape and density.

A causal pair of one query head takes 4 d operations (score and value product, a multiplication and an addition each); a
prompt of T tokens has T (T + 1) / 2 pairs (FlashAttention, arXiv 2205.14135, counts alike). Decoding reads the keys and
values of every attended position once a KV head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsity_policies.model import Tier

_CACHE_BYTES = 2


class Cost(NamedTuple):
    """What attention costs.

    Attributes:
        flops: floating-point operations of prefill and decode.
        kv_bytes: bytes of keys and values that decoding reads.
    """

    flops: float
    kv_bytes: float

    def plus(self, other: Cost) -> Cost:
        """The sum."""
        return Cost(self.flops + other.flops, self.kv_bytes + other.kv_bytes)

    def beyond(self, other: Cost) -> Cost:
        """What it is more than ``other``, never less than nothing."""
        return Cost(max(self.flops - other.flops, 0.0), max(self.kv_bytes - other.kv_bytes, 0.0))


class GpuSpeed(NamedTuple):
    """How fast a GPU does dense attention, to turn costs into time.

    The defaults are an H100's: FlashAttention-3 with 128 numbers a head, causal, and its paged decode, as measured.

    Attributes:
        tflops: 10^12 floating-point operations a second of prefill.
        terabytes: 10^12 bytes a second that decoding reads.
    """

    tflops: float = 600.0
    terabytes: float = 2.9

    def seconds(self, cost: Cost) -> float:
        """How long it takes."""
        return cost.flops / (self.tflops * 1e12) + cost.kv_bytes / (self.terabytes * 1e12)


H100 = GpuSpeed()


class Pairs(NamedTuple):
    """Causal (query, key) pairs of one query head, of prompt tokens and of generated ones."""

    prompt: float = 0.0
    new: float = 0.0

    @classmethod
    def of(cls, prompt_tokens: int, new_tokens: int) -> Pairs:
        """The pairs of one request."""
        new = new_tokens * prompt_tokens + new_tokens * (new_tokens + 1) / 2
        return cls(prompt_tokens * (prompt_tokens + 1) / 2, new)

    def plus(self, other: Pairs) -> Pairs:
        """The sum."""
        return Pairs(self.prompt + other.prompt, self.new + other.new)


class Density(NamedTuple):
    """Attended over causal pairs at one tier; ``requests`` is how many it was measured on, 0 when it is assumed."""

    prefill: float
    decode: float
    requests: int = 0


DENSE = Density(1.0, 1.0)
# Measured on the embedded model at 7,500 tokens (docs/benchmarks/tiers.md); its profiles leave shorter prompts dense.
_ASSUMED = {Tier.DENSE: DENSE, Tier.MODERATE: Density(0.25, 0.3), Tier.AGGRESSIVE: Density(0.19, 0.22)}
_SPARSE_FROM = 4096


def assumed_density(tier: Tier, prompt_tokens: int) -> Density:
    """What a tier is reckoned with at a length where no traffic tells better."""
    return _ASSUMED[tier] if prompt_tokens >= _SPARSE_FROM else DENSE


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model that its attention's cost depends on."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape that a Hugging Face config.json tells, or None when it does not."""
        inner = config.get("text_config", config)
        try:
            heads = int(inner["num_attention_heads"])
            return cls(
                layers=int(inner["num_hidden_layers"]),
                query_heads=heads,
                kv_heads=int(inner.get("num_key_value_heads") or heads),
                head_dim=int(inner.get("head_dim") or inner["hidden_size"] // heads),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def cost(self, pairs: Pairs, density: Density) -> Cost:
        """Cost of attending ``density`` of ``pairs``."""
        prompt, new = pairs.prompt * density.prefill, pairs.new * density.decode
        flops = 4 * self.layers * self.query_heads * self.head_dim * (prompt + new)
        read = new * 2 * self.kv_heads * self.head_dim * _CACHE_BYTES * self.layers
        return Cost(flops, read)


class Shapes:
    """The shapes of the models that a router fronts.

    Args:
        by_model: by the models' names, the default one's first; None of one whose config.json does not tell it.

    Attributes:
        models: the names, of those that tell none too.
    """

    def __init__(self, by_model: Mapping[str, ModelShape | None]) -> None:
        self.models = tuple(by_model)
        self._known = {name: shape for name, shape in by_model.items() if shape is not None}
        self._default = next(iter(by_model.values()), None)

    def __bool__(self) -> bool:
        """Whether any is known."""
        return bool(self._known)

    def of(self, model: str) -> ModelShape | None:
        """A model's; the default one's of what names none, as decisions from before models were named."""
        return self._known.get(model) if model else self._default


NO_SHAPES = Shapes({})
