"""Attention on the CPU: each request by itself, in torch, and pruned work is not done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from sparse_kernels import (
    PagedSequence,
    PageSummaries,
    block_sparse_prefill_cpu,
    dense_attention,
    sparse_paged_decode_cpu,
)
from sparse_kernels.stats import AttentionStats

from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.shares import Shares
from sparsity_worker.plugin.attention import MEASURED_ROWS, Prompt, Spans, watched
from sparsity_worker.profiles.profile import Profile

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


# Of a request whose coverage is measured, every so many generated tokens.
_MEASURED_EVERY = 16


class _Row(NamedTuple):
    """One request of a batch: its tokens are rows ``start .. end``, of ``length`` keys; ``shares`` of them count.

    An earlier pass attended the first ``known`` keys' tokens.
    """

    rid: str
    start: int
    end: int
    length: int
    prompt: Prompt
    table: torch.Tensor
    known: int
    shares: Shares


class TorchAttention:
    """Attention on the CPU.

    Args:
        profiles: what is sparse, by tier.
        summaries: of each layer, by layer id.
        req_to_token: slots of each request's tokens, ``[requests, context]``.
        ledger: where attended pairs are booked.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        summaries: dict[int, PageSummaries],
        req_to_token: torch.Tensor,
        ledger: Ledger,
    ) -> None:
        self._profiles = profiles
        self._summaries = summaries
        self._req_to_token = req_to_token
        self._ledger = ledger
        self._watched = watched(summaries)
        self._rows: list[_Row] = []
        self._written = torch.empty(0, dtype=torch.int64)

    def prepare(self, spans: Spans, decode: bool) -> None:
        """Block tables of the batch and the pages its new tokens touch."""
        page, start = self._profiles[0].block_size, 0
        self._rows, pages = [], [torch.empty(0, dtype=torch.int64)]
        for rid, slot, length, new, prompt in zip(*spans, strict=True):
            table = (self._req_to_token[slot, :length:page] // page).to(torch.int64)
            shares = self._ledger.shares(rid, length, new, 0 if decode else prompt.length)
            known = self._ledger.known(rid)
            self._rows.append(_Row(rid, start, start + new, length, prompt, table, known, shares))
            if decode and prompt.reasoning and shares.any():
                self._ledger.reasoned(rid)
            # Nobody reads the summaries of a dense request's pages: no other tier shares them.
            if not self._profiles[prompt.tier].dense:
                pages.append(table[(length - new) // page :])
            start += new
        self._written = torch.cat(pages)

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: RadixAttention, decode: bool
    ) -> torch.Tensor:
        """Attention of one layer."""
        summaries = self._summaries[layer.layer_id]
        summaries.mark(self._written)
        out = torch.empty_like(q)
        for row in self._rows:
            sequence = PagedSequence(keys, values, row.table, row.length)
            rows = q[row.start : row.end]
            out[row.start : row.end], stats = self._one(rows, sequence, summaries, layer, row, decode)
            self._ledger.add(row.rid, layer.layer_id, row.shares, stats)
        return out

    def _one(
        self,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        layer: RadixAttention,
        row: _Row,
        decode: bool,
    ) -> tuple[torch.Tensor, AttentionStats]:
        prompt, profile = row.prompt, self._profiles[row.prompt.tier]
        # What was attended before was measured then.
        measured = prompt.measured and layer.layer_id in self._watched and bool(row.shares.any())
        if decode:
            paged = profile.decode_at(layer.layer_id)
            if paged and sequence.length >= paged.sparse_from and not prompt.reasoning:
                measured = measured and sequence.length % _MEASURED_EVERY == 0
                out, stats = sparse_paged_decode_cpu(q[0], sequence, summaries, paged, layer.scaling, measured=measured)
                return out[None], stats
        else:
            blocks = profile.prefill_at(layer.layer_id)
            if blocks and prompt.reads_sparsely(blocks, sequence.length):
                return block_sparse_prefill_cpu(
                    q, sequence, summaries, blocks, layer.scaling,
                    total=prompt.length, measured_rows=MEASURED_ROWS if measured else 0, measured_from=row.known,
                )  # fmt: skip
        return dense_attention(q, sequence, layer.scaling)

    def book(self) -> None:
        """Ends the counting of the batch's tokens; each call was entered."""
        for row in self._rows:
            self._ledger.attended(row.rid, row.length)
