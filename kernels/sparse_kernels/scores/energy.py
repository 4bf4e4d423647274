"""What a score works on, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.tiles import TileGrid

TINY = torch.finfo(torch.float32).tiny
# Powers of shares lie below 2 to this, and sums of them within float32.
_POWER_BITS = 112


class Keys(NamedTuple):
    """The keys of one sequence, and their summaries.

    Attributes:
        keys: ``[Hkv, blocks, block, D]``, zero past the end of the sequence.
        sub_mean: float32 ``[blocks, subs, Hkv, D]``, mean key of each sub-block.
        sub_count: int ``[blocks, subs]``, keys behind each mean.
    """

    keys: torch.Tensor
    sub_mean: torch.Tensor
    sub_count: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor, summaries: PageSummaries, table: torch.Tensor) -> Keys:
        """Gathered keys, with the summaries of their pages, int64 ``table``, which are not stale."""
        return cls(keys, summaries.sub_mean[table].float(), summaries.sub_count[table])

    @property
    def block(self) -> int:
        """Keys a block."""
        return self.keys.shape[2]

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean key of each block, float32 ``[blocks, Hkv, D]``, and the keys behind it, float32 ``[blocks]``."""
        count = self.sub_count.float()
        total = count.sum(1)
        mean = (self.sub_mean * count[:, :, None, None]).sum(1) / total.clamp_min(1)[:, None, None]
        return mean, total


class Energy(NamedTuple):
    """What a tile's sampled rows say of each block; both float32 ``[Hkv, tiles, blocks]`` and adding up to one by tile.

    Attributes:
        mass: mean share of softmax mass.
        need: what selection goes by: the power mean over rows of their shares of the mass that is not on the sink. Most
            of the mass lies there, where values weigh next to nothing; and a block that a single row looks up matters
            more than its mean share says. Patterns and methods that go by something else put that here.
    """

    mass: torch.Tensor
    need: torch.Tensor


# Queries laid on the grid [tiles, tile, Hq, D], keys, grid, config and softmax scale.
Score = Callable[[torch.Tensor, Keys, TileGrid, PrefillConfig, float], Energy]


def normalized(weights: torch.Tensor) -> torch.Tensor:
    """The weights as shares of the last dimension's sum; zero where that is zero."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(TINY)


def headroom(peak: float) -> float:
    """What shares are multiplied by before a power is taken: float32 would lose small ones, and needs are relative."""
    return 1.0 if peak == 1 else 2.0 ** (_POWER_BITS / peak)


def earlier(grid: TileGrid, blocks: int, block: int) -> torch.Tensor:
    """bool ``[tiles, blocks]``: blocks up to and including those of the tile itself."""
    return torch.arange(blocks)[None] * block < grid.starts[:, None] + grid.tile
