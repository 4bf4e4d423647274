"""Attention by the Triton kernels: all requests of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
from sparse_kernels import PageSummaries
from sparse_kernels.gpu.block_selection import select_blocks, tile_shape
from sparse_kernels.gpu.block_sparse_prefill import PrefillOutput, block_sparse_prefill
from sparse_kernels.gpu.checks import check_dim
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace, fill_tables
from sparse_kernels.gpu.page_limits import PageLimits, page_capacity
from sparse_kernels.gpu.page_selection import MOST_BLOCKS
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.selection.plan import SelectionPlan, Workspace
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.layout.batch import BatchTiles, PagedBatch
from sparse_kernels.layout.block_index import BlockIndex

from sparsity_worker.plugin.accounts.decode_steps import StepPrices
from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.prefill import PrefillAccounts
from sparsity_worker.plugin.attention import Spans, watched
from sparsity_worker.plugin.host_device import uploaded
from sparsity_worker.plugin.triton_batch import Batch, TierRows, dense_rows, shared_tile
from sparsity_worker.profiles.kernels import check_kernels
from sparsity_worker.profiles.profile import Profile

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


class _Tiles(NamedTuple):
    """What of the tiles of a tier all layers share, made at the first that selects.

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
        for profile in profiles:
            check_kernels(profile)
        scores = {profile.decode.score for profile in profiles if not profile.dense}
        if len(scores) > 1:
            raise ValueError(f"decode.score: must be one for all tiers that share a GPU, not {' and '.join(scores)}")
        for layer in summaries.values():
            check_dim("head_dim", layer.mean.shape[2])
        self._page = profiles[0].block_size
        blocks = -(-req_to_token.shape[1] // self._page)
        if blocks > MOST_BLOCKS:
            raise ValueError(
                f"block_size: contexts of {blocks} blocks, the most that decode chooses from {MOST_BLOCKS}"
            )
        self._profiles = profiles
        self._summaries = summaries
        self._req_to_token = req_to_token
        self.layers = sorted(summaries)
        self._heads, self._kv_heads = heads, summaries[self.layers[0]].mean.shape[1]
        self._watched = watched(summaries)
        self._decode = {layer: [each.decode_at(layer) for each in profiles] for layer in self.layers}
        self._limits = self._tables() if len(profiles) > 1 else {}
        self._staged: Batch | None = None
        self._staged_tiers: list[int] = []
        self._batch: Batch | None = None
        # By tier; that of all of them at once by None.
        self._full: dict[int | None, BlockIndex] = {}
        self._tiles: dict[int, _Tiles] = {}
        self._decode_workspace: DecodeWorkspace | None = None
        self._selection_workspace = Workspace(req_to_token.device)
        self._accounts = PrefillAccounts(ledger, self.layers, heads, self._kv_heads, self._page)

    def _tables(self) -> dict[int, torch.Tensor]:
        """What tiers attend in a decode step of each layer that some of them prune."""
        nobody = torch.zeros(0, dtype=torch.int32, device=self._req_to_token.device)
        return {
            layer: PageLimits.of(nobody, configs, self._page).table
            for layer, configs in self._decode.items()
            if any(config is not None for config in configs)
        }

    def prepare(self, spans: Spans, decode: bool) -> None:
        """Tables, tiles and written pages of the batch, on the device; waits for nothing."""
        self._batch = Batch.of(spans, decode, self._profiles, self._req_to_token)
        self._full, self._tiles = {}, {}
        self._accounts.begin(spans)

    def step_prices(self) -> list[StepPrices]:
        """What each layer attends in a decode step, by tier."""
        prices = []
        for configs in zip(*self._decode.values(), strict=True):
            pages = [page_capacity(config, self._page) if config else 0 for config in configs]
            prices.append(StepPrices(self._page, [config.sparse_from if config else None for config in configs], pages))
        return prices

    def decoding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the decode batch: bool ``[rows]``, which attend everything, and int32 ``[rows]``, tokens in the cache."""
        assert self._batch is not None
        return self._batch.dense, self._batch.lengths

    def allocate(self, most: int) -> None:
        """Buffers for a decode batch of ``most`` requests that a CUDA graph reads, whatever stands in them."""
        page, pool = self._page, self._req_to_token
        tables = torch.zeros(most, -(-pool.shape[1] // page), dtype=torch.int32, device=pool.device)
        lengths, starts, totals, written, filled = torch.ones(5, most, dtype=torch.int32, device=pool.device)
        dense, tiers = (torch.zeros(most, dtype=kind, device=pool.device) for kind in (torch.bool, torch.int32))
        tiles = BatchTiles.of([], [], shared_tile(self._profiles), pool.device)
        nobody = Spans([], [], [], [], [])
        self._staged_tiers = [0] * most
        self._staged = Batch(
            nobody, True, [], tables, lengths, starts, totals, dense, tiers, written, filled, tiles,
            workspace=self._buffers(most),
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
        dense = dense_rows(spans, self._profiles, decode=True)
        flags = torch.tensor(dense + [False] * (count - len(dense)), dtype=torch.bool)
        names = ("tables", "lengths", "starts", "totals", "dense", "tiers", "written", "filled")
        own = all_of._replace(**{name: getattr(all_of, name)[:count] for name in names})
        own.dense.copy_(flags, non_blocking=True)
        tiers = [prompt.tier for prompt in spans.prompts]
        if tiers != self._staged_tiers[: len(tiers)]:
            own.tiers[: len(tiers)].copy_(torch.tensor(tiers, dtype=torch.int32), non_blocking=True)
            self._staged_tiers[: len(tiers)] = tiers
        fill_tables(
            self._req_to_token, slots, lengths.clamp(max=self._req_to_token.shape[1]), self._page,
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
        sparse = any(profile.prefill_at(layer.layer_id) for profile in self._profiles)
        if not decode and sparse and self._batch.written.numel():
            summarize_pages(summaries, keys, values, self._batch.written, self._batch.filled)
        attend = self._decode_step if decode else self._prefill
        return attend(q, self._batch, keys, values, summaries, layer)

    def _prefill(
        self,
        q: torch.Tensor,
        own: Batch,
        keys: torch.Tensor,
        values: torch.Tensor,
        summaries: PageSummaries,
        layer: RadixAttention,
    ) -> torch.Tensor:
        batch = PagedBatch(keys, values, own.tables, own.lengths, own.starts, own.tiles)
        configs = [
            None if group.dense else self._profiles[group.tier].prefill_at(layer.layer_id) for group in own.by_tier
        ]
        if not any(configs):
            return block_sparse_prefill(q, batch, self._everything(batch, None), layer.scaling).out
        into: PrefillOutput | None = None
        for group, config in zip(own.by_tier, configs, strict=True):
            # Each writes its own rows.
            batch = batch._replace(tiles=group.tiles)
            if config is None:
                into = block_sparse_prefill(q, batch, self._everything(batch, group.tier), layer.scaling, into=into)
                continue
            shared = self._tiles.get(group.tier) or self._shared_by_layers(q, own, group)
            found = select_blocks(
                q, batch, summaries, config, layer.scaling,
                totals=own.totals, dense=own.dense, plan=shared.plan, workspace=self._selection_workspace,
            )  # fmt: skip
            into = block_sparse_prefill(q, batch, found.index, layer.scaling, corrections=found.corrections, into=into)
            self._accounts.note(layer.layer_id, group.mine, group.tiles.rows, shared.owner, shared.rows, found)
            if layer.layer_id in self._watched:
                asked = [mine and not dense for mine, dense in zip(group.mine, own.dense_host, strict=True)]
                self._accounts.measure(own.spans, asked, q, batch, found, layer.scaling)
        assert into is not None
        return into.out

    def _everything(self, batch: PagedBatch, tier: int | None) -> BlockIndex:
        found = self._full.get(tier)
        if found is None:
            found = self._full[tier] = BlockIndex.full(batch.before, self._kv_heads, batch.tables.shape[1])
        return found

    def _shared_by_layers(self, q: torch.Tensor, own: Batch, group: TierRows) -> _Tiles:
        profile, tiles, heads = self._profiles[group.tier], group.tiles, self._heads // self._kv_heads
        shape = tile_shape(
            profile.prefill, heads, q.shape[2], profile.block_size, profile.sub_block, q.dtype, q.device
        )  # fmt: skip
        plan = None
        if shape is not None:
            new = [count if mine else 0 for count, mine in zip(own.spans.new, group.mine, strict=True)]
            plan = uploaded(q.device, SelectionPlan.of(own.spans.lengths, new, self._kv_heads, shape, "cpu"))
        owner, first = tiles.sequence.long(), tiles.number * tiles.rows
        prefix = own.lengths - own.starts.diff()
        rows = torch.minimum(own.lengths[owner], first + tiles.rows) - torch.maximum(prefix[owner], first)
        self._tiles[group.tier] = found = _Tiles(plan, owner, rows)
        return found

    def _decode_step(
        self,
        q: torch.Tensor,
        own: Batch,
        keys: torch.Tensor,
        values: torch.Tensor,
        summaries: PageSummaries,
        layer: RadixAttention,
    ) -> torch.Tensor:
        batch = DecodeBatch(keys, values, own.tables, own.lengths)
        workspace = own.workspace or self._eager(q.shape[0])
        configs = [config for config in self._decode[layer.layer_id] if config is not None]
        if not configs:
            return paged_decode(q, batch, layer.scaling, workspace=workspace)
        table = self._limits.get(layer.layer_id)
        return sparse_paged_decode(
            q, batch, summaries, max(configs, key=lambda config: page_capacity(config, self._page)), layer.scaling,
            dense=own.dense, limits=None if table is None else PageLimits(own.tiers, table), workspace=workspace,
        )  # fmt: skip

    def _eager(self, sequences: int) -> DecodeWorkspace:
        """Buffers of decode without a CUDA graph; kept until a larger batch comes."""
        held = self._decode_workspace
        if held is None or held.sequences < sequences:
            held = self._decode_workspace = self._buffers(max(1, triton.next_power_of_2(sequences)))
        return held

    def _buffers(self, sequences: int) -> DecodeWorkspace:
        dim = self._summaries[self.layers[0]].mean.shape[2]
        configs = [config for each in self._decode.values() for config in each if config is not None]
        capacity = max((page_capacity(config, self._page) for config in configs), default=0)
        blocks, device = -(-self._req_to_token.shape[1] // self._page), self._req_to_token.device
        return DecodeWorkspace(sequences, self._heads, self._kv_heads, dim, blocks, capacity, device)

    def book(self) -> None:
        """Enters a pass of prefill into the ledger when the device has said what was selected; decode has its price."""
        own, self._batch = self._batch, None
        if own is not None and not own.decode:
            self._accounts.book(own.spans)
