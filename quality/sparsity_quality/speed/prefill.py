"""Prefill beside dense attention: selection included, and the kernel alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from sparse_kernels import PrefillConfig, causal_pairs
from sparse_kernels.batch import PagedBatch
from sparse_kernels.block_index import BlockIndex
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.mean_correction import Corrections
from sparsity.benchmark import Row, against, judged
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsity_quality.speed import recorded
from sparsity_quality.speed.inputs import PAGE, TILE, Inputs, Shape, inputs
from sparsity_quality.speed.timing import median_ms

# By prompt length: the density that FlashPrefill V2 reports, and half as much again for the moderate tier.
DENSITIES: Mapping[str, Mapping[int, float]] = {
    "aggressive": {8192: 0.54, 16384: 0.34, 32768: 0.19, 65536: 0.09, 131072: 0.046},
    "moderate": {8192: 0.8, 16384: 0.5, 32768: 0.28, 65536: 0.13, 131072: 0.07},
}
_GOALS: Mapping[str, Mapping[int, float]] = {
    "aggressive": {8192: 1.3, 16384: 2.1, 32768: 3.6, 65536: 7.0, 131072: 12.0},
    "moderate": {8192: 1.0, 16384: 1.5, 32768: 2.5, 65536: 5.0, 131072: 8.5},
}
_FORCED, _FORCED_TFLOPS, _FULL_SHARE, _SELECTION_SHARE = 0.1, 450.0, 0.7, 0.15
_GOALS_FROM = 32768


def rows(shape: Shape, length: int, device: str, dtype: torch.dtype) -> Iterator[Row]:
    """What one prompt takes, by every method."""
    given = inputs(shape, length, device, dtype)
    what = f"{shape}, {length} tokens"
    dense = {name: _sdpa(given, backend, device) for name, backend in _BACKENDS.items()}
    for name, taken in dense.items():
        if taken is not None:
            yield Row(f"dense, torch {name}", what, taken, "ms")
    best = min(taken for taken in dense.values() if taken is not None)
    reference = recorded.fastest_dense(length, dense["cuDNN"]) if shape.heads == 32 and dense["cuDNN"] else None
    if reference is not None:
        yield Row("dense, FlashAttention-3, recorded and scaled by this run's cuDNN", what, reference, "ms")
    fastest, named = (reference, "FlashAttention-3, scaled") if reference else (best, "fastest dense of this run")
    batch = PagedBatch.of([given.sequence], [length], TILE)
    before = torch.arange(batch.tables.shape[1], device=device) < batch.before[:, None]
    full = BlockIndex.full(batch.before, shape.kv_heads, batch.tables.shape[1])
    taken = median_ms(lambda: block_sparse_prefill(given.q, batch, full, given.scale), device)
    row = against(Row("ours, full index", what, taken, "ms"), "fastest of torch", best)
    yield judged(row, f">= {_FULL_SHARE:g} times", met=best / taken >= _FULL_SHARE)
    yield from _forced(given, batch, before, shape, length, device)
    for tier, densities in DENSITIES.items():
        density = densities.get(length, 0.25)
        yield from _selected(given, batch, tier, density, length, device, (named, fastest), what)


def _selected(
    given: Inputs,
    batch: PagedBatch,
    tier: str,
    density: float,
    length: int,
    device: str,
    baseline: tuple[str, float],
    what: str,
) -> Iterator[Row]:
    """Selection and corrected attention at a density."""
    # Of the blocks before a tile there are half as many as of all, on the average.
    config = PrefillConfig(
        score="sub_means", rule="top_k", threshold=density / 2, query_tile=TILE, query_stride=8, sink=64, window=0,
        dense_last_tiles=0,
    )  # fmt: skip
    totals = torch.tensor([length], device=device)

    def select() -> torch.Tensor:
        return select_blocks(given.q, batch, given.summaries, config, given.scale, totals=totals).kept

    def attend(kept: torch.Tensor) -> Any:
        means = Corrections.of(kept, batch, given.summaries, 1, given.q.dtype)
        return block_sparse_prefill(given.q, batch, BlockIndex.of(kept), given.scale, corrections=means)

    kept = select()
    reached = _density(kept, batch, length)
    shape = f"{what}, density {reached:.3f}"
    selecting, total = median_ms(select, device), median_ms(lambda: attend(select()), device)
    name, dense = baseline
    row = against(Row(f"ours, {tier}, selection included", shape, total, "ms"), name, dense)
    goal = _GOALS[tier].get(length)
    yield judged(row, f">= {goal:g} times", met=dense / total >= goal) if goal else row
    share = Row(f"ours, {tier}, share of selection", shape, selecting / total, "share")
    bounded = judged(share, f"<= {_SELECTION_SHARE:g}", met=selecting / total <= _SELECTION_SHARE)
    yield bounded if length >= _GOALS_FROM else share
    if tier == "aggressive" and length in recorded.FLASH_PREFILL_V2:
        other = recorded.FLASH_PREFILL_V2[length]
        found = f"FlashPrefill V2, recorded at density {recorded.FLASH_PREFILL_V2_DENSITY:g}, without correction"
        yield against(Row("ours, aggressive, beside FlashPrefill V2", shape, total, "ms"), found, other)


def _forced(
    given: Inputs, batch: PagedBatch, before: torch.Tensor, shape: Shape, length: int, device: str
) -> Iterator[Row]:
    """Attention alone, over a random tenth of the blocks."""
    generator = torch.Generator(device=device).manual_seed(1)
    drawn = torch.rand(shape.kv_heads, *before.shape, generator=generator, device=device) < _FORCED
    kept = drawn & before
    index = BlockIndex.of(kept)
    taken = median_ms(lambda: block_sparse_prefill(given.q, batch, index, given.scale), device)
    reached = _density(kept, batch, length)
    tflops = _flops(shape, length) * reached / (taken * 1e-3) / 1e12
    what = f"{shape}, {length} tokens, density {reached:.3f}"
    row = Row("ours, forced index, attention only", what, tflops, "TFLOP/s of kept pairs")
    other = recorded.FLASH_PREFILL_V2_FORCED.get(length)
    if other is not None and shape.heads == 32:
        row = Row(
            row.name, what, tflops, row.unit, baseline="FlashPrefill V2, recorded", baseline_value=other,
            ratio=tflops / other,
        )  # fmt: skip
        row = judged(row, f">= {_FORCED_TFLOPS:g} TFLOP/s", met=tflops >= _FORCED_TFLOPS)
    yield row
    yield Row("ours, forced index, share of peak", what, tflops / recorded.PEAK_TFLOPS, "share")


def _density(kept: torch.Tensor, batch: PagedBatch, length: int) -> float:
    """Attended over causal pairs, the tiles' own included."""
    inside = length * (TILE + 1) / 2
    return float(kept.sum()) / kept.shape[0] * PAGE * TILE / causal_pairs(length, 0) + inside / causal_pairs(length, 0)


def _flops(shape: Shape, length: int) -> float:
    """Of dense causal attention: two products over each pair."""
    return 4.0 * shape.heads * shape.dim * causal_pairs(length, 0)


_BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def _sdpa(given: Inputs, backend: SDPBackend, device: str) -> float | None:
    """Milliseconds of torch's dense attention; None where the backend cannot do it."""
    keys, values = given.contiguous()
    q = given.q.transpose(0, 1)[None].contiguous()

    def run(enable_gqa: bool = True) -> Callable[[], torch.Tensor]:
        def one() -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                q, keys, values, is_causal=True, scale=given.scale, enable_gqa=enable_gqa
            )

        return one

    if device == "cpu":
        return median_ms(run(), device)
    try:
        with sdpa_kernel(backend):
            return median_ms(run(), device)
    except RuntimeError:
        return None
