"""What a model attends, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Self

from sparse_kernels.config import DecodeConfig, PrefillConfig


@dataclass(frozen=True, slots=True)
class LayerSchedule:
    """Where one layer differs.

    Attributes:
        thresholds: one for each KV head, in place of ``PrefillConfig.threshold``; none when empty.
        budget: tokens, in place of ``DecodeConfig.budget``.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    thresholds: tuple[float, ...] = ()
    budget: int | None = None

    def __post_init__(self) -> None:
        if any(not 0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError("thresholds: must lie in [0, 1]")
        if self.budget is not None and self.budget < 1:
            raise ValueError("budget: must be at least 1 token")


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """Block-sparse prefill and sparse decode of a whole model.

    Attributes:
        prefill: of prompts.
        decode: of single tokens.
        dense_layers: layers that always attend densely.
        layers: where layers differ from ``prefill`` and ``decode``.
        block_size: keys a block, tokens; the page size of a paged cache.
        sub_block: keys behind one mean, tokens; divides block_size.
    """

    prefill: PrefillConfig = field(default_factory=PrefillConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    dense_layers: Set[int] = frozenset({0, 1})
    layers: Mapping[int, LayerSchedule] = field(default_factory=dict)
    block_size: int = 64
    sub_block: int = 16

    def check(self, layers: int, kv_heads: int) -> None:
        """Whether the schedule is for a model of so many layers and KV heads.

        Raises:
            ValueError: naming what is for another model.
        """
        for number, own in sorted(self.layers.items()):
            if number >= layers:
                raise ValueError(f"layers.{number}: the model has {layers} layers; calibrate a profile for it")
            if own.thresholds and len(own.thresholds) != kv_heads:
                raise ValueError(
                    f"layers.{number}.thresholds: are {len(own.thresholds)}, but the model has {kv_heads} KV heads;"
                    " calibrate a profile for it"
                )

    def for_heads(self, heads: range) -> Self:
        """The schedule of some of the KV heads, as one rank of tensor parallelism has them."""
        layers = {
            number: replace(own, thresholds=own.thresholds[heads.start : heads.stop])
            for number, own in self.layers.items()
        }
        return replace(self, layers=layers)

    def prefill_at(self, layer: int) -> PrefillConfig | None:
        """Of this layer; None when it is dense."""
        if layer in self.dense_layers:
            return None
        own = self.layers.get(layer)
        return _prefill(self.prefill, own.thresholds) if own and own.thresholds else self.prefill

    def decode_at(self, layer: int) -> DecodeConfig | None:
        """Of this layer; None when it is dense."""
        if layer in self.dense_layers:
            return None
        own = self.layers.get(layer)
        return _decode(self.decode, own.budget) if own and own.budget else self.decode


@lru_cache(maxsize=1024)
def _prefill(config: PrefillConfig, thresholds: tuple[float, ...]) -> PrefillConfig:
    return replace(config, head_thresholds=thresholds)


@lru_cache(maxsize=1024)
def _decode(config: DecodeConfig, budget: int) -> DecodeConfig:
    return replace(config, budget=budget)
