"""Which key blocks each query tile attends, as compressed sparse rows."""

from __future__ import annotations

from typing import NamedTuple

import torch

WORD_BITS = 32


class BlockIndex(NamedTuple):
    """Kept blocks of every (KV head, query tile), out of those that lie wholly before the tile.

    Tiles of several sequences stand one after another, as in :class:`sparse_kernels.batch.PagedBatch`.

    Attributes:
        indptr: int32 ``[Hkv, tiles + 1]``; the blocks of tile t of head h lie at ``indptr[h, t] : indptr[h, t + 1]``.
        blocks: int32 ``[kept]``, logical blocks of the tile's own sequence, ascending within a tile.
    """

    indptr: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(cls, kept: torch.Tensor) -> BlockIndex:
        """From bool ``[Hkv, tiles, blocks]``."""
        heads, tiles, _ = kept.shape
        ends = torch.nn.functional.pad(kept.sum(-1).flatten().cumsum(0), (1, 0))
        first = torch.arange(heads, device=kept.device)[:, None] * tiles
        return cls(ends[first + torch.arange(tiles + 1, device=kept.device)].int(), kept.nonzero()[:, 2].int())

    def kept(self, blocks: int) -> torch.Tensor:
        """The index as bool ``[Hkv, tiles, blocks]``; the inverse of :meth:`of`.

        Raises:
            ValueError: when a tile keeps a block that does not exist.
        """
        if self.blocks.numel() and not 0 <= int(self.blocks.min()) <= int(self.blocks.max()) < blocks:
            raise ValueError(f"blocks: must lie in [0, {blocks})")
        counts = self.indptr.diff(dim=1).flatten()
        rows = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
        kept = torch.zeros(counts.numel(), blocks, dtype=torch.bool, device=counts.device)
        kept[rows, self.blocks.long()] = True
        return kept.view(self.indptr.shape[0], -1, blocks)

    def density(self, before: torch.Tensor) -> torch.Tensor:
        """Kept over existing blocks of each head, float32 ``[Hkv]``; 1 where no tile has any before it.

        Args:
            before: int ``[tiles]``, blocks wholly before each tile.
        """
        kept = (self.indptr[:, -1] - self.indptr[:, 0]).float()
        return torch.where(before.sum() > 0, kept / before.sum().clamp_min(1), torch.ones_like(kept))


def pruned_words(kept: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Blocks that a tile prunes, a bit each: int32 ``[Hkv, tiles, ceil(blocks / 32)]``, the lowest bit first.

    Args:
        kept: bool ``[Hkv, tiles, blocks]``.
        before: int ``[tiles]``, blocks wholly before each tile; later ones are not pruned but not there.
    """
    blocks = kept.shape[2]
    number = torch.arange(blocks, device=kept.device)
    pruned = ~kept & (number < before[:, None])
    padded = torch.nn.functional.pad(pruned, (0, -blocks % WORD_BITS)).view(*kept.shape[:2], -1, WORD_BITS)
    words = (padded.long() << torch.arange(WORD_BITS, device=kept.device)).sum(-1)
    # Two's complement: the highest bit is the sign.
    return torch.where(words >= 2**31, words - 2**32, words).int()
