"""Named ways to select blocks, each with its paper, and one knob that turns its density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sparse_kernels.config import PrefillConfig

ORACLE = "oracle"


def _share(base: PrefillConfig, knob: float, length: int) -> PrefillConfig:
    return replace(base, threshold=knob)


def _strongest(base: PrefillConfig, knob: float, length: int) -> PrefillConfig:
    return replace(base, threshold=(1 - knob) ** 4)


def _window(base: PrefillConfig, knob: float, length: int) -> PrefillConfig:
    return replace(base, window=round(knob * length))


@dataclass(frozen=True, slots=True)
class Selector:
    """A way to select blocks whose density one knob turns.

    Attributes:
        name: as reports call it.
        kind: `oracle`, `selector` or `pattern`.
        paper: where it comes from.
        base: everything but the knob.
        turned: ``base`` at a knob's value in [0, 1], more of which attends more, for a prompt of so many tokens.
    """

    name: str
    kind: str
    paper: str
    base: PrefillConfig
    turned: Callable[[PrefillConfig, float, int], PrefillConfig] = _share

    def over(self, other: PrefillConfig) -> Selector:
        """The same with the tiles, sink, window and correction of another configuration."""
        shared = {name: getattr(other, name) for name in _SHARED}
        return replace(self, base=replace(self.base, **shared))


_SHARED = ("sparse_from", "query_tile", "sink", "window", "dense_last_tiles", "mean_correction", "mean_blocks")


def own(config: PrefillConfig, name: str, kind: str) -> Selector:
    """The selector of a configuration, with one threshold for all heads as its knob."""
    turned = _strongest if config.rule == "max_threshold" else _share
    return Selector(name, kind, "", replace(config, head_thresholds=()), turned)


def _made(
    name: str, kind: str, paper: str, turned: Callable[[PrefillConfig, float, int], PrefillConfig] = _share, **how: Any
) -> Selector:
    # Nothing is given but sink and own tile, so that what a selector does at low density is its own.
    fixed = {"sparse_from": 0, "window": 0, "dense_last_tiles": 0}
    settings: dict[str, Any] = fixed | {"rule": "top_p", "query_stride": 8} | how
    return Selector(name, kind, paper, PrefillConfig(**settings), turned)


SELECTORS: dict[str, Selector] = {
    each.name: each
    for each in (
        _made(ORACLE, "oracle", "every row against every key; saves nothing", score="sampled_rows", query_stride=1),
        _made("rows' needs", "selector", "this project", score="sampled_rows", peak=8.0),
        _made("sampled rows", "selector", "SampleAttention, arXiv 2406.15486", score="sampled_rows"),
        _made("sub-block means", "selector", "this project", score="sub_means"),
        _made("second order", "selector", "this project", score="second_order"),
        _made("FlashPrefill", "selector", "arXiv 2608.19758", _strongest, score="block_means", rule="max_threshold"),
        _made("XAttention", "selector", "arXiv 2503.16428", score="antidiagonal", query_stride=16),
        _made("MInference lines", "selector", "arXiv 2407.02490", score="vertical_slash"),
        _made("FlexPrefill", "selector", "arXiv 2502.20766", score="flex"),
        _made("MoBA top-k", "selector", "arXiv 2502.13189", score="block_means", rule="top_k"),
        _made("window + global", "pattern", "Longformer, arXiv 2004.05150", _window, score="window_only"),
        _made("BigBird", "pattern", "arXiv 2007.14062", score="random_blocks", rule="top_k"),
        _made("strided", "pattern", "arXiv 1904.10509", score="strided_blocks", rule="top_k"),
        _made("LSH buckets", "pattern", "Reformer, arXiv 2001.04451", score="lsh_buckets", rule="top_k"),
    )
}
