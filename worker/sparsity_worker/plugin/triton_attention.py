"""Attention by the Triton kernels: all requests of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import triton
from sparse_kernels import PageSummaries
from sparse_kernels.gpu.block_energy import COLUMNS
from sparse_kernels.gpu.block_selection import select_blocks, tile_shape
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.gpu.checks import check_dim
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace, fill_tables
from sparse_kernels.gpu.page_selection import MOST_BLOCKS, page_capacity
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.selection.plan import SelectionPlan, Workspace
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.layout.batch import BatchTiles, PagedBatch
from sparse_kernels.layout.block_index import BlockIndex

from sparsity_worker.plugin.accounts.decode_steps import StepPrices
from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.prefill import PrefillAccounts
from sparsity_worker.plugin.attention import Spans, watched
from sparsity_worker.plugin.host_device import upload, uploaded
from sparsity_worker.profiles.profile import Profile

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


_ALIGNED_BLOCKS = 16


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
        workspace: buffers of decode under a CUDA graph.
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
    workspace: DecodeWorkspace | None = None


class _Tiles(NamedTuple):
    """What of a prefill batch's tiles all layers share, made at the first that selects.

    Attributes:
        plan: of selection; None where it needs none.
        owner: int64 ``[tiles]``, whose tile it is.
        rows: int32 ``[tiles]``, new tokens in it.
    """

    plan: SelectionPlan | None
    owner: torch.Tensor
    rows: torch.Tensor


class TritonAttention:
    """Attention by the Triton kernels.

    Args:
        profiles: what is sparse, by tier.
        summaries: of each layer, by layer id.
        req_to_token: slots of each request's tokens, ``[requests, context]``.
        ledger: where attended pairs are booked.
        heads: query heads of a layer.

    Attributes:
        layers: ids of those that it attends.

    Raises:
        ValueError: naming what of the profile, or of the model, has no kernel.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        summaries: dict[int, PageSummaries],
        req_to_token: torch.Tensor,
        ledger: Ledger,
        heads: int,
    ) -> None:
        if len(profiles) > 1:
            raise ValueError("tier: the kernels for GPUs serve one in an engine")
        profile = profiles[0]
        prefill = profile.prefill
        if prefill.score not in COLUMNS:
            raise ValueError(f"prefill.score: must be one of {', '.join(COLUMNS)} on a GPU, not {prefill.score}")
        if prefill.query_tile % profile.block_size or prefill.query_tile & (prefill.query_tile - 1):
            raise ValueError(f"prefill.query_tile: {prefill.query_tile} must be a power of 2 and whole blocks on a GPU")
        for layer in summaries.values():
            check_dim("head_dim", layer.mean.shape[2])
        blocks = -(-req_to_token.shape[1] // profile.block_size)
        if blocks > MOST_BLOCKS:
            raise ValueError(
                f"block_size: contexts of {blocks} blocks, the most that decode chooses from {MOST_BLOCKS}"
            )
        self._profile, self._sparse_from = profile, profile.prefill.sparse_from
        self._summaries = summaries
        self._req_to_token = req_to_token
        self.layers = sorted(summaries)
        self._heads, self._kv_heads = heads, summaries[self.layers[0]].mean.shape[1]
        self._watched = watched(summaries)
        self._staged: _Batch | None = None
        self._batch: _Batch | None = None
        self._full: BlockIndex | None = None
        self._decode_workspace: DecodeWorkspace | None = None
        self._tiles: _Tiles | None = None
        self._selection_workspace = Workspace(req_to_token.device)
        self._accounts = PrefillAccounts(ledger, self.layers, heads, self._kv_heads, profile.block_size)

    def prepare(self, spans: Spans, decode: bool) -> None:
        """Tables, tiles and written pages of the batch, on the device; waits for nothing."""
        page, device, tile = self._profile.block_size, self._req_to_token.device, self._profile.prefill.query_tile
        new = np.array(spans.new, dtype=np.int64)
        # A step that runs ahead of what its request may still generate can be one token past the context.
        length = np.minimum(np.array(spans.lengths, dtype=np.int64), self._req_to_token.shape[1])
        first, touched = (length - new) // page, np.where(new > 0, (length - 1) // page + 1 - (length - new) // page, 0)
        owner = np.repeat(np.arange(len(length)), touched)
        block = first[owner] + np.arange(len(owner)) - np.repeat(touched.cumsum() - touched, touched)
        flags = [each.reasoning if decode else not each.is_long(self._sparse_from) for each in spans.prompts]
        tiles = BatchTiles.of(*([], []) if decode else (spans.lengths, spans.new), tile)
        slots, owners, blocks, filled, lengths, starts, totals, dense, *moved = upload(
            device, spans.slots, owner, block, np.minimum(page, length[owner] - block * page), length,
            [0, *new.cumsum()], [prompt.length for prompt in spans.prompts], flags, *tiles[1:],
        )  # fmt: skip
        tiles = BatchTiles(tile, *(there.view(part.shape) for there, part in zip(moved, tiles[1:], strict=True)))
        # Kernels have variants for rows that begin at 16 bytes and that do not, and decode's for widths.
        widest = -(-max(spans.lengths, default=1) // (_ALIGNED_BLOCKS * page)) * _ALIGNED_BLOCKS * page
        tables = (self._req_to_token[slots.long(), : None if decode else widest : page] // page).int()
        self._batch = _Batch(
            spans, decode, flags, tables, lengths, starts, totals, dense.bool(), tables[owners.long(), blocks.long()],
            filled, tiles,
        )  # fmt: skip
        self._full = self._tiles = None
        self._accounts.begin(spans)

    def step_prices(self) -> list[StepPrices]:
        """What each layer attends in a decode step, by tier."""
        configs, page = [self._profile.decode_at(layer) for layer in self.layers], self._profile.block_size
        pages = [page_capacity(config, page) if config else 0 for config in configs]
        return [StepPrices(page, [config.sparse_from if config else None for config in configs], pages)]

    def decoding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the decode batch: bool ``[rows]``, which attend everything, and int32 ``[rows]``, tokens in the cache."""
        assert self._batch is not None
        return self._batch.dense, self._batch.lengths

    def allocate(self, most: int) -> None:
        """Buffers for a decode batch of ``most`` requests that a CUDA graph reads, whatever stands in them."""
        page, pool = self._profile.block_size, self._req_to_token
        tables = torch.zeros(most, -(-pool.shape[1] // page), dtype=torch.int32, device=pool.device)
        lengths, starts, totals, written, filled = torch.ones(5, most, dtype=torch.int32, device=pool.device)
        dense = torch.zeros(most, dtype=torch.bool, device=pool.device)
        tiles = BatchTiles.of([], [], self._profile.prefill.query_tile, pool.device)
        nobody = Spans([], [], [], [], [])
        self._staged = _Batch(
            nobody, True, [], tables, lengths, starts, totals, dense, written, filled, tiles, self._buffers(most)
        )  # fmt: skip

    def stage(self, spans: Spans, slots: torch.Tensor, lengths: torch.Tensor) -> None:
        """Takes note of a decode batch that a CUDA graph runs, in the buffers of :meth:`allocate`; waits for nothing.

        Args:
            spans: the requests; fewer than there are slots where the batch is padded, none at capture.
            slots: int ``[padded requests]``, rows in the pool of requests.
            lengths: int ``[padded requests]``, tokens in the cache.
        """
        assert self._staged is not None
        count, all_of = slots.shape[0], self._staged
        dense = [prompt.reasoning for prompt in spans.prompts]
        flags = torch.tensor(dense + [False] * (count - len(dense)), dtype=torch.bool)
        names = ("tables", "lengths", "starts", "totals", "dense", "written", "filled")
        own = all_of._replace(**{name: getattr(all_of, name)[:count] for name in names})
        own.dense.copy_(flags, non_blocking=True)
        fill_tables(
            self._req_to_token, slots, lengths.clamp(max=self._req_to_token.shape[1]), self._profile.block_size,
            tables=own.tables, held=own.lengths, written=own.written, filled=own.filled,
        )  # fmt: skip
        self._batch = own._replace(spans=spans, dense_host=dense)

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: RadixAttention, decode: bool
    ) -> torch.Tensor:
        """Attention of one layer."""
        assert self._batch is not None
        summaries = self._summaries[layer.layer_id]
        # Here and not when they are read: a graph cannot ask which pages are stale. Sparse decode does it on its own,
        # and of a dense layer they are never read.
        if not decode and self._profile.prefill_at(layer.layer_id) is not None:
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
        if config is None or all(own.dense_host):
            if self._full is None:
                self._full = BlockIndex.full(batch.before, keys.shape[2], own.tables.shape[1])
            return block_sparse_prefill(q, batch, self._full, layer.scaling).out
        if self._tiles is None:
            self._tiles = self._shared_by_layers(q, own)
        found = select_blocks(
            q, batch, summaries, config, layer.scaling,
            totals=own.totals, dense=own.dense, plan=self._tiles.plan, workspace=self._selection_workspace,
        )  # fmt: skip
        out = block_sparse_prefill(q, batch, found.index, layer.scaling, corrections=found.corrections).out
        shared = self._tiles
        self._accounts.note(layer.layer_id, len(own.spans.rids), shared.owner, shared.rows, found)
        if layer.layer_id in self._watched:
            self._accounts.measure(own.spans, own.dense_host, q, batch, found, layer.scaling)
        return out

    def _shared_by_layers(self, q: torch.Tensor, own: _Batch) -> _Tiles:
        profile, tile, group = self._profile, own.tiles.rows, self._heads // self._kv_heads
        shape = tile_shape(
            profile.prefill, group, q.shape[2], profile.block_size, profile.sub_block, q.dtype, q.device
        )  # fmt: skip
        plan = None
        if shape is not None:
            plan = uploaded(q.device, SelectionPlan.of(own.spans.lengths, own.spans.new, self._kv_heads, shape, "cpu"))
        owner, first = own.tiles.sequence.long(), own.tiles.number * tile
        prefix = own.lengths - own.starts.diff()
        rows = torch.minimum(own.lengths[owner], first + tile) - torch.maximum(prefix[owner], first)
        return _Tiles(plan, owner, rows)

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
        config, workspace = self._profile.decode_at(layer.layer_id), own.workspace or self._eager(q.shape[0])
        if config is None:
            return paged_decode(q, batch, layer.scaling, workspace=workspace)
        return sparse_paged_decode(q, batch, summaries, config, layer.scaling, dense=own.dense, workspace=workspace)

    def _eager(self, sequences: int) -> DecodeWorkspace:
        """Buffers of decode without a CUDA graph; kept until a larger batch comes."""
        held = self._decode_workspace
        if held is None or held.sequences < sequences:
            held = self._decode_workspace = self._buffers(max(1, triton.next_power_of_2(sequences)))
        return held

    def _buffers(self, sequences: int) -> DecodeWorkspace:
        page, dim = self._profile.block_size, self._summaries[self.layers[0]].mean.shape[2]
        configs = [config for layer in self.layers if (config := self._profile.decode_at(layer)) is not None]
        capacity = max((page_capacity(config, page) for config in configs), default=0)
        blocks, device = -(-self._req_to_token.shape[1] // page), self._req_to_token.device
        return DecodeWorkspace(sequences, self._heads, self._kv_heads, dim, blocks, capacity, device)

    def book(self) -> None:
        """Enters a pass of prefill into the ledger when the device has said what was selected; decode has its price."""
        own, self._batch = self._batch, None
        if own is not None and not own.decode:
            self._accounts.book(own.spans, own.tiles.rows)
