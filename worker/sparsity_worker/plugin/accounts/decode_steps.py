"""Decode steps: which rows attend everything, decided on the device so that graphs hold it, and what each attends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.attention import Spans
from sparsity_worker.plugin.host_device import upload

_NO_TOKEN: Final = -1


class StepPrices:
    """Tokens that each layer attends in a decode step: lengths tell it, and nothing is read from the device.

    Args:
        page: tokens a page.
        sparse_from: tokens from which each layer is sparse; None for layers that never are.
        pages: that each sparse layer attends at most.
    """

    def __init__(self, page: int, sparse_from: Sequence[int | None], pages: Sequence[int]) -> None:
        self._page = page
        self._sparse_from = np.array([[np.iinfo(np.int64).max if each is None else each] for each in sparse_from])
        self._pages = np.array(pages)[:, None]

    def attended(self, lengths: NDArray[np.int64], dense: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Tokens of a query head, ``[layers, steps]``; the last page, which may not be full, is always among them.

        Args:
            lengths: tokens in the cache at each step, the new one included.
            dense: steps that attend everything.
        """
        there = -(-lengths // self._page)
        pruned = (lengths >= self._sparse_from) & (there > self._pages) & ~dense
        attended: NDArray[np.int64] = np.where(pruned, lengths - (there - self._pages) * self._page, lengths)
        return attended


class DenseRows:
    """Reasoning spans, and contexts so short that sparse attention takes longer.

    A step may be prepared before the token that it reads is known on the host: whether that is a marker is seen on the
    device.

    Args:
        most: rows of the largest batch.
        decode_from: of each tier, by sequences at once, the tokens from which sparse decode is faster; a number between
            two of them takes the smaller's, and one below all of them none.
        ledger: where steps are booked.
        device: of the batches.
    """

    def __init__(
        self, most: int, decode_from: Sequence[Mapping[int, int]], ledger: Ledger, device: torch.device
    ) -> None:
        self._ledger = ledger
        self._decode_from = [sorted(each.items()) for each in decode_from]
        # Opening and closing markers by row, and the shortest sparse context.
        self._markers = torch.full((2, most), _NO_TOKEN, dtype=torch.int32, device=device)
        self._shortest = torch.zeros(most, dtype=torch.int32, device=device)
        self._marked = 0
        self._spans: Spans | None = None
        self._from = [0] * most

    def shortest(self, sequences: int, tier: int = 0) -> int:
        """Tokens from which a tier's rows in a batch of so many sequences decode sparsely."""
        return next((tokens for fewest, tokens in reversed(self._decode_from[tier]) if fewest <= sequences), 0)

    def stage(self, spans: Spans) -> None:
        """Takes note of a batch before its first layer; waits for nothing."""
        self._spans, count = spans, len(spans.rids)
        by_tier = [self.shortest(count, tier) for tier in range(len(self._decode_from))]
        shortest = [*(by_tier[prompt.tier] for prompt in spans.prompts), *self._from[count:]]
        if len(set(by_tier)) == 1:
            # For larger batches, too.
            shortest = by_tier[:1] * len(self._from)
        markers = [prompt.markers or (_NO_TOKEN, _NO_TOKEN) for prompt in spans.prompts]
        marked = count if any(prompt.markers for prompt in spans.prompts) else 0
        # Rows of an earlier batch must not keep their markers.
        rows = max(marked, self._marked)
        if shortest == self._from and not rows:
            return
        padded = markers[:rows] + [(_NO_TOKEN, _NO_TOKEN)] * (rows - len(markers))
        found = upload(self._markers.device, np.array(padded, dtype=np.int32).reshape(-1, 2).T.ravel(), shortest)
        self._markers[:, :rows].copy_(found[0].view(2, rows))
        self._shortest.copy_(found[1])
        self._marked, self._from = marked, shortest

    def apply(self, dense: torch.Tensor, lengths: torch.Tensor, tokens: torch.Tensor) -> None:
        """Completes which rows attend everything; a CUDA graph may hold it.

        Args:
            dense: bool ``[rows]``, so far by the tokens that the host knows; changed.
            lengths: int32 ``[rows]``, tokens in the cache.
            tokens: int ``[rows]``, the newest token of each.
        """
        opens, closes = self._markers[:, : dense.shape[0]]
        dense.logical_or_(tokens == opens).logical_and_(tokens != closes)
        dense.logical_or_(lengths < self._shortest[: dense.shape[0]])

    def book(self) -> None:
        """Enters the steps of the batch that was staged last, once."""
        spans, self._spans = self._spans, None
        if spans is not None:
            for row, (rid, length, prompt) in enumerate(zip(spans.rids, spans.lengths, spans.prompts, strict=True)):
                self._ledger.step(rid, length, dense=length < self._from[row], tier=prompt.tier)
