"""Several sequences of a paged KV cache, and the query tiles of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.layout.contents import check_pages
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid


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

    def check(
        self,
        index: BlockIndex | None = None,
        summaries: PageSummaries | None = None,
        dense: torch.Tensor | None = None,
    ) -> None:
        """Checks what the tensors hold, which kernels do not look at on a GPU; it waits for the device.

        Args:
            index: what the tiles are to attend.
            summaries: by which blocks are to be selected.
            dense: bool ``[sequences]``, those of which nobody reads the summaries.

        Raises:
            ValueError: when pages are out of range, rows or tiles are not those of the sequences, the index is of
                other tiles or blocks, or a summary that is read is stale.
        """
        owner = self.tiles.sequence.long()
        sequences = self.lengths.shape[0]
        if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < sequences:
            raise ValueError(f"batch: tiles of sequence {int(owner.max())}, there are {sequences}")
        mine = torch.zeros(sequences, dtype=torch.bool, device=owner.device)
        mine[owner] = True
        read = (mine if dense is None else mine & ~dense)[:, None]
        check_pages(self.keys, self.tables, self.lengths, summaries, read)
        new = self.starts.diff()
        first = self.tiles.number * self.tiles.rows
        outside = (first >= self.lengths[owner]) | (first + self.tiles.rows <= (self.lengths - new)[owner])
        if (
            bool(outside.any() | (new < 0).any() | (new > self.lengths).any())
            or int(self.starts[-1]) > self.tiles.queries
        ):
            raise ValueError("batch: starts and tiles are not of these lengths")
        if index is not None:
            index.check(self.before)

    @property
    def before(self) -> torch.Tensor:
        """int32 ``[tiles]``, key blocks wholly before each tile."""
        return self.tiles.number * self.tiles.rows // self.page


class BatchTiles(NamedTuple):
    """Query tiles of several sequences, each on its own sequence's absolute grid.

    Attributes:
        rows: rows a tile.
        queries: rows of all sequences, of which these are tiles.
        sequence: int32 ``[tiles]``, whose tile it is.
        number: int32 ``[tiles]``, which one of its sequence's grid.
        whole: int32 ``[tiles, 8]``, the tiles as work, those that see most first: tile, sequence, position of the first
            row, where that row stands among the rows of all (before the sequence's first one where the tile begins
            earlier), position of the sequence's first query, length of the sequence, and two zeros.
        halves: int32 ``[halves, 8]``, the same of half tiles that have a query.
    """

    rows: int
    queries: int
    sequence: torch.Tensor
    number: torch.Tensor
    whole: torch.Tensor
    halves: torch.Tensor

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        queries: Sequence[int],
        tile: int,
        device: torch.device | str = "cpu",
        *,
        only: Sequence[bool] | None = None,
    ) -> BatchTiles:
        """The tiles, by sequence and then by position.

        Args:
            lengths: of the sequences, tokens.
            queries: of each, its last tokens.
            tile: rows a tile.
            device: where they are to lie.
            only: the sequences that have any; None for all. The others' queries stand among the rows all the same.
        """
        grids = [TileGrid.of(length - count, count, tile) for length, count in zip(lengths, queries, strict=True)]
        wanted = [bool(grid.queries) and (only is None or only[owner]) for owner, grid in enumerate(grids)]
        owners = [owner for owner, grid in enumerate(grids) for _ in range(grid.tiles if wanted[owner] else 0)]
        numbers = [grids[owner].first + each for owner in dict.fromkeys(owners) for each in range(grids[owner].tiles)]
        starts = [0, *accumulate(queries)]

        def work(rows: int) -> list[int]:
            pieces = [
                (position, at, owner, starts[owner] + position - grid.prefix, grid.prefix, lengths[owner])
                for at, (owner, number) in enumerate(zip(owners, numbers, strict=True))
                for grid in (grids[owner],)
                for position in range(number * tile, (number + 1) * tile, rows)
                if position < lengths[owner] and position + rows > grid.prefix
            ]
            pieces.sort(key=lambda piece: -piece[0])
            return [each for position, at, owner, *rest in pieces for each in (at, owner, position, *rest, 0, 0)]

        parts = (owners, numbers, work(tile), work(tile // 2) if tile > 1 else [])
        # One copy to the device, in which every part is aligned.
        joined = torch.tensor([each for part in parts for each in (*part, *[0] * (-len(part) % 4))], dtype=torch.int32)
        laid, starts_at = joined.to(device), accumulate((-(-len(part) // 4) * 4 for part in parts), initial=0)
        owner, number, whole, halves = (laid[at : at + len(part)] for at, part in zip(starts_at, parts, strict=False))
        return cls(tile, starts[-1], owner, number, whole.view(-1, 8), halves.view(-1, 8))
