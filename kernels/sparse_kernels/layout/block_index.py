"""Which key blocks each query tile attends, as lists of logical blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch


class BlockIndex(NamedTuple):
    """Kept blocks of every (KV head, query tile), out of those that lie wholly before the tile.

    Tiles of several sequences stand one after another, as in :class:`sparse_kernels.layout.batch.PagedBatch`. The kept
    blocks of tile t of head h are ``blocks[starts[h, t] : starts[h, t] + counts[h, t]]``; tiles may share them, and
    there may be room between them.

    Attributes:
        starts: int32 ``[Hkv, tiles]``.
        counts: int32 ``[Hkv, tiles]``.
        blocks: int32, one dimension: logical blocks of the tile's own sequence, ascending within a tile.
    """

    starts: torch.Tensor
    counts: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(cls, kept: torch.Tensor) -> BlockIndex:
        """From bool ``[Hkv, tiles, blocks]``."""
        counts = kept.sum(-1)
        starts = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
        return cls(starts.int(), counts.int(), kept.nonzero()[:, 2].int())

    @classmethod
    def full(cls, before: torch.Tensor, kv_heads: int, blocks: int) -> BlockIndex:
        """Every block before each tile; all tiles share one list.

        Args:
            before: int ``[tiles]``, blocks wholly before each tile.
            kv_heads: KV heads.
            blocks: the most blocks of a sequence.
        """
        counts = before.int().expand(kv_heads, -1).contiguous()
        return cls(torch.zeros_like(counts), counts, torch.arange(blocks, dtype=torch.int32, device=before.device))

    def kept(self, blocks: int) -> torch.Tensor:
        """The index as bool ``[Hkv, tiles, blocks]``; the inverse of :meth:`of`.

        Raises:
            ValueError: when a tile keeps a block that does not exist.
        """
        counts = self.counts.flatten().long()
        rows = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
        # Where each entry lies: from the start of its tile on.
        first = self.starts.flatten().long() - (counts.cumsum(0) - counts)
        kept_blocks = self.blocks.long()[torch.arange(rows.numel(), device=rows.device) + first[rows]]
        if kept_blocks.numel() and not 0 <= int(kept_blocks.min()) <= int(kept_blocks.max()) < blocks:
            raise ValueError(f"blocks: must lie in [0, {blocks})")
        kept = torch.zeros(counts.numel(), blocks, dtype=torch.bool, device=counts.device)
        kept[rows, kept_blocks] = True
        return kept.view(*self.counts.shape, blocks)

    def density(self, before: torch.Tensor) -> torch.Tensor:
        """Kept over existing blocks of each head, float32 ``[Hkv]``; 1 where no tile has any before it.

        Args:
            before: int ``[tiles]``, blocks wholly before each tile.
        """
        kept = self.counts.sum(1).float()
        return torch.where(before.sum() > 0, kept / before.sum().clamp_min(1), torch.ones_like(kept))
