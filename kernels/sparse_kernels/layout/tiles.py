"""Query tiles on an absolute grid, so that a chunk boundary never moves a tile."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TileGrid(NamedTuple):
    """The query tiles that rows ``prefix .. prefix + queries - 1`` fall into.

    Attributes:
        tile: rows a tile.
        first: absolute number of the first tile.
        tiles: tiles.
        prefix: position of the first query row.
        queries: query rows.
    """

    tile: int
    first: int
    tiles: int
    prefix: int
    queries: int

    @classmethod
    def of(cls, prefix: int, queries: int, tile: int) -> TileGrid:
        """The grid over ``queries`` rows after ``prefix`` cached tokens."""
        first = prefix // tile
        return cls(tile, first, (prefix + queries + tile - 1) // tile - first, prefix, queries)

    @property
    def lead(self) -> int:
        """Padding rows before the first query row in the first tile."""
        return self.prefix - self.first * self.tile

    @property
    def starts(self) -> torch.Tensor:
        """int64 ``[tiles]``, position of each tile's first row."""
        return (torch.arange(self.tiles) + self.first) * self.tile

    @property
    def valid(self) -> torch.Tensor:
        """bool ``[tiles, tile]``, False for padding rows."""
        rows = torch.arange(self.tiles * self.tile)
        return ((rows >= self.lead) & (rows < self.lead + self.queries)).view(self.tiles, self.tile)

    def split(self, q: torch.Tensor) -> torch.Tensor:
        """Rows ``[queries, H, D]`` laid on the grid, ``[tiles, tile, H, D]``; padding rows are zero."""
        laid = q.new_empty(self.tiles * self.tile, *q.shape[1:])
        end = self.lead + self.queries
        laid[: self.lead], laid[self.lead : end], laid[end:] = 0.0, q, 0.0
        return laid.view(self.tiles, self.tile, *q.shape[1:])

    def join(self, laid: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`split`."""
        return laid.reshape(self.tiles * self.tile, *laid.shape[2:])[self.lead : self.lead + self.queries]
