"""A ragged batch whose blocks are selected, and what the CPU selects of each of its sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sparse_kernels import BlockSelection, Keys, PrefillConfig, TileGrid, select_blocks_cpu
from sparse_kernels.layout.batch import PagedBatch
from support.kernels.paging import joined, queries

DIM, TILE = 16, 32
SCALE = DIM**-0.5


class SelectionCase:
    """A batch; ``counts`` are (prefix, queries) of each sequence."""

    def __init__(
        self,
        counts: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
        heads: int = 6,
        kv_heads: int = 2,
        spread: float = 3.0,
    ) -> None:
        self.sequences, self.summaries = joined([prefix + new for prefix, new in counts], kv_heads, DIM, dtype=dtype)
        # Pages of nobody were never summarized.
        owned = torch.cat([sequence.table for sequence in self.sequences])
        unwritten = torch.ones(self.summaries.mean.shape[0], dtype=torch.bool)
        unwritten[owned] = False
        for each in (self.summaries.sub_mean, self.summaries.mean, self.summaries.value_mean):
            each[unwritten] = float("nan")
        self.new = [new for _, new in counts]
        self.q = spread * queries(sum(self.new), heads, DIM, dtype=dtype)
        self.batch = PagedBatch.of(self.sequences, self.new, TILE)
        self.totals = torch.tensor([sequence.length for sequence in self.sequences])

    def one(self, number: int, config: PrefillConfig, total: int | None = None) -> BlockSelection:
        """What the CPU selects for one sequence, in float32."""
        sequence, new = self.sequences[number], self.new[number]
        grid = TileGrid.of(sequence.length - new, new, config.query_tile)
        keys = sequence.gather()[0].float()
        at = Keys(keys, self.summaries.sub_mean[sequence.table].float(), self.summaries.sub_count[sequence.table])
        rows = self.q.float().split(self.new)[number]
        return select_blocks_cpu(grid.split(rows), at, grid, total or sequence.length, config, SCALE)

    def of(self, number: int, each: torch.Tensor) -> torch.Tensor:
        """The tiles of one sequence."""
        return each[:, self.batch.tiles.sequence == number]
