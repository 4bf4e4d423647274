"""How the layers of a transformers model attend on a GPU: by the kernels that serve there. Needs Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.gpu.decode_batch import DecodeBatch
from sparse_kernels.gpu.page_limits import page_capacity
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.schedule import SparseAttention
from sparse_kernels.stats import AttentionStats, causal_pairs


@dataclass(frozen=True, slots=True)
class ByKernels:
    """A :class:`sparse_kernels.huggingface.adapter.LayerAttention` that does on a GPU what a profile says.

    One sequence at a time, each call waiting for the device to say what it attended: for measuring, not for serving.

    Attributes:
        profile: how the model attends; its score must be one that has a kernel.
    """

    profile: SparseAttention

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Dense below the profile's lengths and in its dense layers, there too by the kernels.

        Raises:
            ValueError: naming what of the profile, or of the model, has no kernel.
        """
        if q.shape[0] == 1:
            decode = self.profile.decode_at(layer)
            return _decode(q, sequence, summaries, decode if decode and _begun(decode, sequence) else None, scale)
        prefill = self.profile.prefill_at(layer)
        if prefill and _begun(prefill, sequence):
            return _sparse_prefill(q, sequence, summaries, prefill, scale)
        batch = PagedBatch.of([sequence], [q.shape[0]], self.profile.prefill.query_tile)
        everything = BlockIndex.full(batch.before, sequence.kv_heads, batch.tables.shape[1])
        batch.check(everything)
        return block_sparse_prefill(q, batch, everything, scale).out, _dense(q, sequence)


def _begun(config: PrefillConfig | DecodeConfig, sequence: PagedSequence) -> bool:
    return sequence.length >= config.sparse_from


def _dense(q: torch.Tensor, sequence: PagedSequence) -> AttentionStats:
    rows, heads, _ = q.shape
    pairs = heads * causal_pairs(rows, sequence.length - rows)
    return AttentionStats(pairs, pairs, 1.0, heads * rows)


def _summarize(sequence: PagedSequence, summaries: PageSummaries) -> None:
    """Brings summaries up to date as a worker does: the pages that were written, and only these."""
    stale = summaries.stale[sequence.table].nonzero().squeeze(1)
    if stale.numel():
        filled = (sequence.length - stale * sequence.page).clamp_max(sequence.page)
        summarize_pages(summaries, sequence.keys, sequence.values, sequence.table[stale].int(), filled.int())


def _sparse_prefill(
    q: torch.Tensor, sequence: PagedSequence, summaries: PageSummaries, config: PrefillConfig, scale: float
) -> tuple[torch.Tensor, AttentionStats]:
    rows, heads, _ = q.shape
    _summarize(sequence, summaries)
    batch = PagedBatch.of([sequence], [rows], config.query_tile)
    batch.check(summaries=summaries)
    found = select_blocks(q, batch, summaries, config, scale, totals=batch.lengths)
    out = block_sparse_prefill(q, batch, found.index, scale, corrections=found.corrections).out
    grid = TileGrid.of(sequence.length - rows, rows, config.query_tile)
    positions = torch.arange(grid.tiles * grid.tile).view(grid.tiles, grid.tile) % grid.tile + 1
    valid = grid.valid
    each = valid.sum(1).double()
    kept = float((found.index.counts.sum(0).cpu() * each).sum()) * sequence.page * sequence.group(heads)
    inside = heads * int((positions * valid).sum())
    coverage = float((found.coverage.mean(0).cpu() * each).sum()) / rows
    causal = heads * causal_pairs(rows, grid.prefix)
    return out, AttentionStats(int(kept) + inside, causal, coverage, heads * rows)


def _decode(
    q: torch.Tensor, sequence: PagedSequence, summaries: PageSummaries, config: DecodeConfig | None, scale: float
) -> tuple[torch.Tensor, AttentionStats]:
    """One token over all pages, or over its best ones; the kernels tell no coverage of that."""
    lengths = torch.tensor([sequence.length], dtype=torch.int32, device=q.device)
    batch = DecodeBatch(sequence.keys, sequence.values, sequence.table.int()[None], lengths)
    if config is None:
        batch.check()
        return paged_decode(q, batch, scale), _dense(q, sequence)
    _summarize(sequence, summaries)
    batch.check(summaries)
    out = sparse_paged_decode(q, batch, summaries, config, scale)
    blocks, page, heads = sequence.table.numel(), sequence.page, q.shape[1]
    attended = min(blocks, page_capacity(config, page)) * page - (blocks * page - sequence.length)
    return out, AttentionStats(heads * attended, heads * sequence.length, 1.0, 0)
