"""What stands for the keys that a query tile prunes: means of units of blocks, each weighed as its pruned keys."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.page_summaries import PageSummaries

UNITS = (1, 2, 4)
# Units of a sequence are padded to a multiple of it: a step of the kernels reads so many.
WIDTH = 128


class Corrections(NamedTuple):
    """Columns that enter the softmax for pruned blocks, one a unit of 1, 2 or 4 blocks.

    A unit that lies wholly before the tile enters by the mean of all its blocks, and weighs as many keys as are pruned
    of it, kept blocks or not; the fewer than ``unit`` blocks between the last such unit and the tile are not corrected.

    Attributes:
        means: key means ``[units, Hkv, D]`` in the dtype of the queries, contiguous, in logical order: unit u of
            sequence s stands at row ``offsets[s] + u``, and each sequence has a multiple of 128 rows, the rest zero.
        value_means: value means, same shape.
        offsets: int32 ``[sequences]``.
        weights: float16 ``[Hkv, tiles, widest]``, log2 of the pruned keys behind a unit, minus infinity where there are
            none; ``widest`` is a multiple of 128.
        unit: blocks behind a mean.
    """

    means: torch.Tensor
    value_means: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor
    unit: int

    @classmethod
    def of(
        cls, kept: torch.Tensor, batch: PagedBatch, summaries: PageSummaries, unit: int, dtype: torch.dtype
    ) -> Corrections:
        """From kept blocks bool ``[Hkv, tiles, blocks]`` and summaries that are not stale, in plain torch.

        Raises:
            ValueError: when ``unit`` is not 1, 2 or 4.
        """
        if unit not in UNITS:
            raise ValueError(f"unit: must be 1, 2 or 4 blocks, not {unit}")
        sequences, blocks = batch.tables.shape
        units = max(1, -(-blocks // unit))
        widest = -(-units // WIDTH) * WIDTH
        spare = widest * unit - blocks
        device = kept.device
        there = torch.arange(blocks, device=device) * batch.page < batch.lengths[:, None]
        table = torch.where(there, batch.tables, 0).long()

        def means(pages: torch.Tensor) -> torch.Tensor:
            # What lies past a sequence's end may be NaN.
            laid = torch.where(there[..., None, None], pages[table].float(), 0.0)
            laid = torch.nn.functional.pad(laid, (0, 0, 0, 0, 0, spare))
            return laid.view(sequences, widest, unit, *laid.shape[2:]).mean(2).flatten(0, 1).to(dtype)

        before = batch.before[:, None]
        pruned = ~kept & (torch.arange(blocks, device=device) < before)
        counts = torch.nn.functional.pad(pruned, (0, spare)).view(*kept.shape[:2], widest, unit).sum(-1)
        whole = torch.arange(widest, device=device) < before // unit
        weights = (counts * whole * batch.page).float().log2().half()
        offsets = torch.arange(sequences, dtype=torch.int32, device=device) * widest
        return cls(means(summaries.mean), means(summaries.value_mean), offsets, weights, unit)
