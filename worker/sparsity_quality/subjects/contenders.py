"""What is compared: dense, profiles, the oracle, one threshold for all heads, published selectors, fixed patterns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from sparse_kernels.config import PrefillConfig
from sparse_kernels.schedule import SparseAttention
from sparse_kernels.selectors import ORACLE, SELECTORS, Selector, own

FIRST_DENSE = frozenset({0, 1})


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure.

    Attributes:
        name: as reports call it.
        kind: `dense`, `profile`, `oracle`, `uncalibrated`, `selector` or `pattern`.
        attention: how it attends.
    """

    name: str
    kind: str
    attention: SparseAttention

    @property
    def digest(self) -> str:
        """Of everything that decides how it attends."""
        attention = self.attention
        parts = (attention.prefill, attention.decode, attention.block_size, attention.sub_block)
        layers = (sorted(attention.dense_layers)[:4096], sorted(attention.layers.items()))
        return hashlib.sha256(repr((parts, layers)).encode()).hexdigest()[:12]


# Of the selectors in the registry those that are not the project's own: its own stands as `uncalibrated`.
_PUBLISHED = (
    ORACLE, "FlashPrefill", "XAttention", "MInference lines", "FlexPrefill", "MoBA top-k",
    "window + global", "BigBird", "strided", "LSH buckets",
)  # fmt: skip


def rivals(profile: SparseAttention) -> list[Selector]:
    """Everything that is set beside a profile, with the profile's tiles, sink, window and correction.

    The oracle scores every row against every key and keeps the blocks of most true softmax mass; it saves nothing.
    `uncalibrated` is the profile's own selector with one threshold for all layers and heads.
    """
    oracle, *others = (SELECTORS[name].over(profile.prefill) for name in _PUBLISHED)
    return [oracle, own(profile.prefill, "uncalibrated", "uncalibrated"), *others]


def contender(rival: Selector, knob: float, length: int, profile: SparseAttention, beside: str) -> Contender:
    """A rival at one length with the knob set; its decode is the profile's, so that only prefill differs."""
    prefill = rival.turned(rival.base, knob, length)
    return Contender(f"{rival.name} beside {beside}", rival.kind, one_threshold(profile, prefill))


def one_threshold(profile: SparseAttention, prefill: PrefillConfig) -> SparseAttention:
    """The profile with another prefill, alike in all heads; its first two layers are dense, as is usual unlearned."""
    layers = {number: replace(layer, thresholds=()) for number, layer in profile.layers.items()}
    return SparseAttention(prefill, profile.decode, FIRST_DENSE, layers, profile.block_size, profile.sub_block)
