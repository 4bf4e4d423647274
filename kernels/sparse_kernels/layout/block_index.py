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

    def check(self, before: torch.Tensor) -> None:
        """Checks what the index holds, which kernels do not look at on a GPU; it waits for the device.

        Args:
            before: int ``[tiles]``, blocks wholly before each tile.

        Raises:
            ValueError: when a tile's list goes past the end of ``blocks``, is longer than there are blocks before it,
                or holds another block.
        """
        counts, starts = self.counts.flatten().long(), self.starts.flatten().long()
        most = before.long().repeat(self.counts.shape[0])
        if counts.shape != most.shape or bool(((counts < 0) | (counts > most)).any()):
            raise ValueError("index: counts are of another batch: a tile keeps more blocks than lie before it")
        if bool(((counts > 0) & ((starts < 0) | (starts + counts > self.blocks.numel()))).any()):
            raise ValueError(f"index: starts and counts go past the {self.blocks.numel()} entries of blocks")
        rows, listed = self._listed()
        if bool(((listed < 0) | (listed >= most[rows])).any()):
            raise ValueError("index: blocks hold some that do not lie before their tile")

    def _listed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Every entry: its head and tile as one number, and its block; int64."""
        counts = self.counts.flatten().long()
        rows = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
        # Where each entry lies: from the start of its tile on.
        first = self.starts.flatten().long() - (counts.cumsum(0) - counts)
        return rows, self.blocks.long()[torch.arange(rows.numel(), device=rows.device) + first[rows]]

    def kept(self, blocks: int) -> torch.Tensor:
        """The index as bool ``[Hkv, tiles, blocks]``; the inverse of :meth:`of`.

        Raises:
            ValueError: when a tile keeps a block that does not exist.
        """
        rows, kept_blocks = self._listed()
        if kept_blocks.numel() and not 0 <= int(kept_blocks.min()) <= int(kept_blocks.max()) < blocks:
            raise ValueError(f"blocks: must lie in [0, {blocks})")
        kept = torch.zeros(self.counts.numel(), blocks, dtype=torch.bool, device=rows.device)
        kept[rows, kept_blocks] = True
        return kept.view(*self.counts.shape, blocks)

    def density(self, before: torch.Tensor) -> torch.Tensor:
        """Kept over existing blocks of each head, float32 ``[Hkv]``; 1 where no tile has any before it.

        Args:
            before: int ``[tiles]``, blocks wholly before each tile.
        """
        kept = self.counts.sum(1).float()
        return torch.where(before.sum() > 0, kept / before.sum().clamp_min(1), torch.ones_like(kept))
