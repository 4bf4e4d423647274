"""Attention by the Triton kernels: all requests of a batch at once."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sparse_kernels import PagedSequence, PageSummaries, causal_pairs
from sparse_kernels.batch import BatchTiles, PagedBatch
from sparse_kernels.block_index import BlockIndex
from sparse_kernels.config import PrefillConfig
from sparse_kernels.gpu.block_energy import COLUMNS
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.gpu.checks import check_dim
from sparse_kernels.gpu.page_selection import page_capacity, page_counts, select_pages
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.sparse_paged_decode import DecodeBatch, sparse_paged_decode
from sparse_kernels.mean_correction import Corrections
from sparse_kernels.measured_coverage import measured_coverage, spread_rows

from sparsity_worker.plugin.accounting import DECODE, PREFILL, Ledger
from sparsity_worker.plugin.attention import MEASURED_ROWS, Spans, watched
from sparsity_worker.profile import Profile

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


class _Batch(NamedTuple):
    """A batch on the device.

    Attributes:
        spans: the same on the host.
        decode: whether each request has one new token that is decoded.
        dense_host: requests that attend everything: prefill that is short, or decode in a reasoning span.
        tables: int32 ``[requests, blocks]``, physical pages.
        lengths: int32 ``[requests]``.
        starts: int32 ``[requests + 1]``, where each one's rows begin.
        totals: int32 ``[requests]``, whole prompts.
        dense: bool ``[requests]``, the same on the device.
        written: int32, physical pages that the new tokens touch.
        filled: int32, tokens in each of these.
        tiles: of prefill.
    """

    spans: Spans
    decode: bool
    dense_host: list[bool]
    tables: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    totals: torch.Tensor
    dense: torch.Tensor
    written: torch.Tensor
    filled: torch.Tensor
    tiles: BatchTiles


class TritonAttention:
    """Attention by the Triton kernels.

    Args:
        profile: what is sparse.
        summaries: of each layer, by layer id.
        req_to_token: slots of each request's tokens, ``[requests, context]``.
        ledger: where attended pairs are booked.
        heads: query heads of a layer.

    Raises:
        ValueError: naming what of the profile, or of the model, has no kernel.
    """

    def __init__(
        self,
        profile: Profile,
        summaries: dict[int, PageSummaries],
        req_to_token: torch.Tensor,
        ledger: Ledger,
        heads: int,
    ) -> None:
        prefill = profile.prefill
        if prefill.score not in COLUMNS:
            raise ValueError(f"prefill.score: must be one of {', '.join(COLUMNS)} on a GPU, not {prefill.score}")
        if prefill.query_tile % profile.block_size or prefill.query_tile & (prefill.query_tile - 1):
            raise ValueError(f"prefill.query_tile: {prefill.query_tile} must be a power of 2 and whole blocks on a GPU")
        for layer in summaries.values():
            check_dim("head_dim", layer.mean.shape[2])
        self._profile = profile
        self._summaries = summaries
        self._req_to_token = req_to_token
        self._ledger = ledger
        self._layers = sorted(summaries)
        self._heads, self._kv_heads = heads, summaries[self._layers[0]].mean.shape[1]
        self._watched = watched(summaries)
        self._staged: _Batch | None = None
        self._batch: _Batch | None = None
        self._full: BlockIndex | None = None
        # By layer: kept blocks' rows and coverage times rows of each request, float64 [2, requests], on the device.
        self._attended: dict[int, torch.Tensor] = {}

    def prepare(self, spans: Spans, decode: bool) -> None:
        """Tables, tiles and written pages of the batch, on the device."""
        page, device = self._profile.block_size, self._req_to_token.device
        widest = max(spans.lengths, default=1)
        slots = torch.tensor(spans.slots, dtype=torch.int64, device=device)
        tables = (self._req_to_token[slots, :widest:page] // page).int()
        touched = [
            (number, block, min(page, length - block * page))
            for number, (length, new) in enumerate(zip(spans.lengths, spans.new, strict=True))
            for block in range((length - new) // page, (length - 1) // page + 1)
        ]
        owner, block, filled = torch.tensor(touched, dtype=torch.int64, device=device).view(-1, 3).unbind(1)
        sparse_from = self._profile.prefill.sparse_from
        dense = [prompt.reasoning if decode else not prompt.is_long(sparse_from) for prompt in spans.prompts]
        each = ([*spans.lengths], [*accumulate(spans.new, initial=0)], [prompt.length for prompt in spans.prompts])
        lengths, starts, totals = (torch.tensor(values, dtype=torch.int32, device=device) for values in each)
        tiles = BatchTiles.of(
            *([], []) if decode else (spans.lengths, spans.new), self._profile.prefill.query_tile, device
        )  # fmt: skip
        self._batch = _Batch(
            spans, decode, dense, tables, lengths, starts, totals, torch.tensor(dense, dtype=torch.bool, device=device),
            tables[owner, block], filled.int(), tiles,
        )  # fmt: skip
        self._full = None
        # Of a batch that SGLang captured or warmed up with, which nobody booked.
        self._attended = {}

    def allocate(self, most: int) -> None:
        """Buffers for a decode batch of ``most`` requests that a CUDA graph reads, whatever stands in them."""
        page, pool = self._profile.block_size, self._req_to_token
        tables = torch.zeros(most, -(-pool.shape[1] // page), dtype=torch.int32, device=pool.device)
        lengths, starts, totals, written, filled = torch.ones(5, most, dtype=torch.int32, device=pool.device)
        dense = torch.zeros(most, dtype=torch.bool, device=pool.device)
        tiles = BatchTiles.of([], [], self._profile.prefill.query_tile, pool.device)
        nobody = Spans([], [], [], [], [])
        self._staged = _Batch(nobody, True, [], tables, lengths, starts, totals, dense, written, filled, tiles)

    def stage(self, spans: Spans, slots: torch.Tensor, lengths: torch.Tensor) -> None:
        """Takes note of a decode batch that a CUDA graph runs, in the buffers of :meth:`allocate`; waits for nothing.

        Args:
            spans: the requests; fewer than there are slots where the batch is padded, none at capture.
            slots: int ``[padded requests]``, rows in the pool of requests.
            lengths: int ``[padded requests]``, tokens in the cache.
        """
        assert self._staged is not None
        page, count, all_of = self._profile.block_size, slots.shape[0], self._staged
        dense = [prompt.reasoning for prompt in spans.prompts]
        flags = torch.tensor(dense + [False] * (count - len(dense)), dtype=torch.bool)
        tables = (self._req_to_token[slots.long(), ::page] // page).int()
        last = (lengths - 1).long()
        all_of.tables[:count, : tables.shape[1]].copy_(tables)
        all_of.lengths[:count].copy_(lengths)
        all_of.dense[:count].copy_(flags, non_blocking=True)
        all_of.written[:count].copy_(tables.gather(1, last[:, None] // page)[:, 0])
        all_of.filled[:count].copy_(last % page + 1)
        names = ("tables", "lengths", "starts", "totals", "dense", "written", "filled")
        views = {name: getattr(all_of, name)[:count] for name in names}
        self._batch = all_of._replace(spans=spans, dense_host=dense, **views)

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: RadixAttention, decode: bool
    ) -> torch.Tensor:
        """Attention of one layer."""
        assert self._batch is not None
        summaries = self._summaries[layer.layer_id]
        # Here and not when they are read: a graph cannot ask which pages are stale.
        summarize_pages(summaries, keys, values, self._batch.written, self._batch.filled)
        attend = self._decode if decode else self._prefill
        return attend(q.contiguous(), self._batch, keys, values, summaries, layer)

    def _prefill(
        self,
        q: torch.Tensor,
        own: _Batch,
        keys: torch.Tensor,
        values: torch.Tensor,
        summaries: PageSummaries,
        layer: RadixAttention,
    ) -> torch.Tensor:
        batch = PagedBatch(keys, values, own.tables, own.lengths, own.starts, own.tiles)
        config = self._profile.prefill_at(layer.layer_id)
        if config is None or all(not prompt.is_long(config.sparse_from) for prompt in own.spans.prompts):
            if self._full is None:
                self._full = BlockIndex.full(batch.before, keys.shape[2], own.tables.shape[1])
            return block_sparse_prefill(q, batch, self._full, layer.scaling).out
        kept, coverage = select_blocks(
            q, batch, summaries, config, layer.scaling, totals=own.totals, dense=own.dense
        )  # fmt: skip
        corrections = None
        if config.mean_correction:
            corrections = Corrections.of(kept, batch, summaries, config.mean_blocks, q.dtype)
        out = block_sparse_prefill(q, batch, BlockIndex.of(kept), layer.scaling, corrections=corrections).out
        self._note(layer.layer_id, own, kept, coverage, config)
        if layer.layer_id in self._watched:
            self._measure(q, own, keys, values, kept, layer.scaling)
        return out

    def _measure(
        self,
        q: torch.Tensor,
        own: _Batch,
        keys: torch.Tensor,
        values: torch.Tensor,
        kept: torch.Tensor,
        scale: float,
    ) -> None:
        """Holds a few rows of the requests that ask for it against every key; it waits for the device."""
        page, tile, row = self._profile.block_size, own.tiles.rows, 0
        for number, (rid, length, new, prompt) in enumerate(
            zip(own.spans.rids, own.spans.lengths, own.spans.new, own.spans.prompts, strict=True)
        ):
            if prompt.measured and not own.dense_host[number]:
                table = own.tables[number, : -(-length // page)].long()
                every = PagedSequence(keys, values, table, length).gather()[0]
                positions = spread_rows(length - new, new, MEASURED_ROWS).to(q.device)
                tiles = kept[:, own.tiles.sequence == number, : every.shape[1]]
                first = (length - new) // tile
                blocks = torch.arange(every.shape[1], device=q.device)
                mine = blocks >= positions[:, None] // tile * (tile // page)
                attended = tiles[:, positions // tile - first] | mine
                share = measured_coverage(q[row + positions - (length - new)], positions, every, attended, scale)
                self._ledger.measured(rid, share, positions.numel())
            row += new

    def _note(self, layer: int, own: _Batch, kept: torch.Tensor, coverage: torch.Tensor, config: PrefillConfig) -> None:
        """Adds up on the device, for :meth:`book` to read once a pass."""
        owner = own.tiles.sequence.long()
        first = own.tiles.number * config.query_tile
        prefix = own.lengths - own.starts.diff()
        rows = torch.minimum(own.lengths[owner], first + config.query_tile) - torch.maximum(prefix[owner], first)
        each = torch.stack([kept.sum((0, 2)) * rows, coverage.mean(0) * rows]).double()
        found = torch.zeros(2, len(own.spans.rids), dtype=torch.float64, device=kept.device)
        self._attended[layer] = found.index_add_(1, owner, each)

    def _decode(
        self,
        q: torch.Tensor,
        own: _Batch,
        keys: torch.Tensor,
        values: torch.Tensor,
        summaries: PageSummaries,
        layer: RadixAttention,
    ) -> torch.Tensor:
        batch = DecodeBatch(keys, values, own.tables, own.lengths)
        config = self._profile.decode_at(layer.layer_id)
        if config is None:
            page, kv_heads = keys.shape[1:3]
            every = (own.lengths + page - 1) // page
            none = torch.zeros(q.shape[0], kv_heads, 1, dtype=torch.int32, device=q.device)
            return sparse_paged_decode(q, batch, none, layer.scaling, every.int())
        pages = select_pages(q, batch, summaries, config, layer.scaling)
        return sparse_paged_decode(q, batch, pages, layer.scaling, page_counts(batch, config, own.dense))

    def book(self) -> None:
        """Enters the pass into the ledger: what was selected in prefill, what the budgets allow in decode."""
        if self._batch is None:
            return
        own, self._batch = self._batch, None
        measured = torch.stack(list(self._attended.values())).cpu().numpy() if self._attended else None
        rows = [self._layers.index(layer) for layer in self._attended]
        self._attended = {}
        for number, (rid, length, new) in enumerate(zip(own.spans.rids, own.spans.lengths, own.spans.new, strict=True)):
            # Pairs attended, causal pairs, coverage summed over rows, and rows, of one query head.
            table = np.zeros((len(self._layers), 4))
            table[:, :2] = causal_pairs(new, length - new)
            if own.decode:
                # Coverage of decode is not estimated: it would cost more than the scores themselves.
                if not own.dense_host[number]:
                    table[:, 0] = [self._decoded(layer, length) for layer in self._layers]
            else:
                table[:, 2:] = new
                if measured is not None:
                    inside = _pairs_inside(length - new, length, own.tiles.rows)
                    table[rows, 0] = measured[:, 0, number] * self._profile.block_size / self._kv_heads + inside
                    table[rows, 2] = measured[:, 1, number]
            self._ledger.add_layers(rid, DECODE if own.decode else PREFILL, self._layers, table * self._heads)

    def _decoded(self, layer: int, length: int) -> int:
        """Tokens that one step attends in a layer; the last page, which may not be full, is always among them."""
        config, page = self._profile.decode_at(layer), self._profile.block_size
        there = -(-length // page)
        if config is None or length < config.sparse_from or there <= page_capacity(config, page):
            return length
        return page_capacity(config, page) * page - (there * page - length)


def _pairs_inside(first: int, last: int, tile: int) -> int:
    """Causal pairs of rows ``first .. last - 1`` with the keys of their own tiles."""

    def below(row: int) -> int:
        whole, rest = divmod(row, tile)
        return whole * causal_pairs(tile, 0) + causal_pairs(rest, 0)

    return below(last) - below(first)
