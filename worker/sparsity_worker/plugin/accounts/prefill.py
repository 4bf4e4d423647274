"""Accounts of prefill by the kernels: added up on the device, and booked when the device has said them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sparse_kernels import PagedSequence, causal_pairs
from sparse_kernels.gpu.block_selection import BatchSelection
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.measured_coverage import measured_coverage, spread_rows

from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.shares import Shares
from sparsity_worker.plugin.attention import MEASURED_ROWS, Spans, accounted
from sparsity_worker.plugin.host_device import Download


class PrefillAccounts:
    """What the layers of one pass at a time attended.

    Args:
        ledger: where it is booked.
        layers: ids of all layers.
        heads: query heads of a layer.
        kv_heads: KV heads of a layer.
        block: keys a block, tokens.
    """

    def __init__(self, ledger: Ledger, layers: Sequence[int], heads: int, kv_heads: int, block: int) -> None:
        self._ledger, self._layers = ledger, list(layers)
        self._heads, self._kv_heads, self._block = heads, kv_heads, block
        # By layer: kept blocks' rows and coverage times rows of each request, float64 [2, requests], on the device.
        self._attended: dict[int, torch.Tensor] = {}
        # By layer and request: rows of the tiles by which its blocks were chosen; 0 where it attended everything.
        self._chosen: dict[int, list[int]] = {}
        self._on = True

    def begin(self, spans: Spans) -> None:
        """Drops what was noted since the last booking, as of a batch that SGLang captured or warmed up with."""
        self._attended, self._chosen = {}, {}
        self._on = accounted(spans.prompts)

    def note(
        self,
        layer: int,
        mine: Sequence[bool],
        tile: int,
        owner: torch.Tensor,
        rows: torch.Tensor,
        found: BatchSelection,
    ) -> None:
        """Adds up some requests of a layer on the device, for :meth:`book` to read once a pass.

        Args:
            layer: its id.
            mine: of the batch's requests, those whose blocks were chosen.
            tile: query rows that share an index.
            owner: int64 ``[tiles]``, whose tile it is.
            rows: int32 ``[tiles]``, new tokens in it.
            found: what was selected.
        """
        if not self._on:
            return
        each = torch.stack([found.index.counts.sum(0), found.coverage.mean(0)]).double() * rows
        booked = self._attended.get(layer)
        if booked is None:
            booked = self._attended[layer] = torch.zeros(2, len(mine), dtype=torch.float64, device=each.device)
            self._chosen[layer] = [0] * len(mine)
        booked.index_add_(1, owner, each)
        self._chosen[layer] = [tile if own else was for own, was in zip(mine, self._chosen[layer], strict=True)]

    def measure(
        self,
        spans: Spans,
        pruned: Sequence[bool],
        q: torch.Tensor,
        batch: PagedBatch,
        found: BatchSelection,
        scale: float,
    ) -> None:
        """Holds a few rows of the requests that ask for it against every key; it waits for the device.

        Args:
            spans: the requests.
            pruned: which of them may attend less than everything, by what was selected.
            q: ``[rows, Hq, D]``, of all requests.
            batch: where they lie.
            found: what was selected.
            scale: softmax scale.
        """
        page, tile, row = self._block, batch.tiles.rows, 0
        asked = [prompt.measured and mine for prompt, mine in zip(spans.prompts, pruned, strict=True)]
        kept = found.kept if any(asked) else None
        for number, (rid, length, new) in enumerate(zip(spans.rids, spans.lengths, spans.new, strict=True)):
            # What was attended before was measured then.
            if kept is not None and asked[number] and self._ledger.known(rid) < length:
                table = batch.tables[number, : -(-length // page)].long()
                every = PagedSequence(batch.keys, batch.values, table, length).gather()[0]
                begin = max(length - new, self._ledger.known(rid))
                positions = spread_rows(begin, length - begin, MEASURED_ROWS).to(q.device)
                tiles = kept[:, batch.tiles.sequence == number, : every.shape[1]]
                first = (length - new) // tile
                blocks = torch.arange(every.shape[1], device=q.device)
                mine = blocks >= positions[:, None] // tile * (tile // page)
                attended = tiles[:, positions // tile - first] | mine
                share = measured_coverage(q[row + positions - (length - new)], positions, every, attended, scale)
                self._ledger.measured(rid, share, positions.numel())
            row += new

    def book(self, spans: Spans) -> None:
        """Enters the pass into the ledger once the device has said what was selected."""
        attended, chosen = self._attended, np.array(list(self._chosen.values()))
        self._attended, self._chosen = {}, {}
        found = Download(torch.stack(list(attended.values()))) if attended else None
        shares = []
        for rid, length, new, prompt in zip(spans.rids, spans.lengths, spans.new, spans.prompts, strict=True):
            shares.append(self._ledger.shares(rid, length, new, prompt.length))
            self._ledger.attended(rid, length)
        rows, ready = [self._layers.index(layer) for layer in attended], found.ready if found else lambda: True
        self._ledger.defer(spans.rids, lambda: self._enter(spans, shares, np.array(rows), chosen, found), ready)

    def _enter(
        self,
        spans: Spans,
        shares: Sequence[Shares],
        rows: NDArray[np.int64],
        chosen: NDArray[np.int64],
        found: Download | None,
    ) -> None:
        """Books prefill: every layer as dense, but ``rows`` by what was ``found`` where blocks were ``chosen``."""
        selected = None if found is None else found.read()
        for number, (rid, length, new) in enumerate(zip(spans.rids, spans.lengths, spans.new, strict=True)):
            # Pairs attended, causal pairs, coverage summed over rows, and rows, of one query head.
            table = np.empty((len(self._layers), 4))
            table[:, :2], table[:, 2:] = causal_pairs(new, length - new), new
            if selected is not None and (pruned := chosen[:, number] > 0).any():
                pairs = selected[pruned, 0, number] * self._block / self._kv_heads
                # Of a request all tiles are of one size, its tier's.
                table[rows[pruned], 0] = pairs + _pairs_inside(length - new, length, int(chosen[:, number].max()))
                table[rows[pruned], 2] = selected[pruned, 1, number]
            self._ledger.add_layers(rid, shares[number], self._layers, table * self._heads)


def _pairs_inside(first: int, last: int, tile: int) -> int:
    """Causal pairs of rows ``first .. last - 1`` with the keys of their own tiles."""

    def below(row: int) -> int:
        whole, rest = divmod(row, tile)
        return whole * causal_pairs(tile, 0) + causal_pairs(rest, 0)

    return below(last) - below(first)
