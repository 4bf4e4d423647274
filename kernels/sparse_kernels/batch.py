"""Several sequences of a paged KV cache, and the query tiles of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sparse_kernels.paged import PagedSequence
from sparse_kernels.tiles import TileGrid


class PagedBatch(NamedTuple):
    """Where the keys and values of several sequences lie, and which tokens of each are queries: its last ones.

    Attributes:
        keys: ``[pages, page, Hkv, D]``, the layer's whole key cache.
        values: same shape.
        tables: int32 ``[sequences, blocks]``, physical page of each logical block; past a sequence's end anything.
        lengths: int32 ``[sequences]``, valid tokens, queries included.
        starts: int32 ``[sequences + 1]``, where each sequence's queries begin among the rows of all.
        tiles: the query tiles of all sequences.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    tiles: BatchTiles

    @classmethod
    def of(cls, sequences: Sequence[PagedSequence], queries: Sequence[int], tile: int) -> PagedBatch:
        """The last ``queries`` tokens of each sequence are queries, in tiles of ``tile`` rows.

        Raises:
            ValueError: when there is no sequence, they lie in different caches, or one has fewer tokens than queries.
        """
        if not sequences or len(sequences) != len(queries):
            raise ValueError(f"queries: {len(queries)} counts for {len(sequences)} sequences")
        first = sequences[0]
        for number, (sequence, count) in enumerate(zip(sequences, queries, strict=True)):
            if sequence.keys is not first.keys or sequence.values is not first.values:
                raise ValueError(f"sequences: number {number} lies in another cache than the first")
            if not 0 <= count <= sequence.length:
                raise ValueError(f"queries: {count} of number {number}, which has {sequence.length} tokens")
        device = first.keys.device
        widest = max(sequence.table.numel() for sequence in sequences)
        tables = torch.zeros(len(sequences), widest, dtype=torch.int32, device=device)
        for row, sequence in zip(tables, sequences, strict=True):
            row[: sequence.table.numel()] = sequence.table
        lengths = [sequence.length for sequence in sequences]
        starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        tiles = BatchTiles.of(lengths, queries, tile, device)
        return cls(
            first.keys, first.values, tables, torch.tensor(lengths, dtype=torch.int32, device=device),
            starts.to(device), tiles,
        )  # fmt: skip

    @property
    def page(self) -> int:
        """Tokens a page, which is a key block."""
        return self.keys.shape[1]

    @property
    def before(self) -> torch.Tensor:
        """int32 ``[tiles]``, key blocks wholly before each tile."""
        return self.tiles.number * self.tiles.rows // self.page


class BatchTiles(NamedTuple):
    """Query tiles of several sequences, each on its own sequence's absolute grid.

    Attributes:
        rows: rows a tile.
        sequence: int32 ``[tiles]``, whose tile it is.
        number: int32 ``[tiles]``, which one of its sequence's grid.
    """

    rows: int
    sequence: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], queries: Sequence[int], tile: int, device: torch.device | str = "cpu"
    ) -> BatchTiles:
        """The tiles, by sequence and then by position."""
        grids = [TileGrid.of(length - count, count, tile) for length, count in zip(lengths, queries, strict=True)]
        owners = [owner for owner, grid in enumerate(grids) for _ in range(grid.tiles if grid.queries else 0)]
        numbers = [grid.first + each for grid in grids for each in range(grid.tiles if grid.queries else 0)]
        owner, number = (torch.tensor(each, dtype=torch.int32, device=device) for each in (owners, numbers))
        return cls(tile, owner, number)
