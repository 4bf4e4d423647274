"""How strongly a query tile attends each key block, estimated: the scores that block selection can go by.

Every score is a softmax of sampled query rows over columns that stand for keys, added up by block; scores differ in
what a column is. `sampled_rows` looks at every key for few rows and is nearest to the truth: rows of a tile attend
alike, keys of a block do not. The others look at summaries of keys, and so need not read the keys at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.tiles import TileGrid

# As many scores as stay in the cache: larger buffers cost more to map than to fill.
_SCORES_AT_ONCE = 2**21
_FLOOR, _TINY = torch.finfo(torch.float32).min, torch.finfo(torch.float32).tiny


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

    @property
    def block(self) -> int:
        """Keys a block."""
        return self.keys.shape[2]


class Columns(NamedTuple):
    """What rows are scored against.

    Attributes:
        keys: ``[Hkv, D', columns]``, equally many columns a block.
        bias: float32 ``[columns]``, added to the scores; the log of the keys behind a column.
        lift: takes queries ``[..., D]``, already scaled, to ``[..., D']``.
    """

    keys: torch.Tensor
    bias: torch.Tensor
    lift: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows


def sampled_rows(at: Keys) -> Columns:
    """Every key for itself: exact rows of the attention matrix (SampleAttention, arXiv 2406.15486)."""
    kv_heads, blocks, block, dim = at.keys.shape
    return Columns(at.keys.reshape(kv_heads, blocks * block, dim).transpose(1, 2), torch.zeros(blocks * block))


def sub_means(at: Keys) -> Columns:
    """Means of the sub-blocks, from the page summaries."""
    return Columns(at.sub_mean.permute(2, 3, 0, 1).flatten(2), at.sub_count.reshape(-1).float().log())


def block_means(at: Keys) -> Columns:
    """Means of whole blocks (FlashPrefill, arXiv 2608.19758; MoBA, arXiv 2502.13189)."""
    count = at.sub_count.float()
    mean = (at.sub_mean * count[:, :, None, None]).sum(1) / count.sum(1).clamp_min(1)[:, None, None]
    return Columns(mean.permute(1, 2, 0), count.sum(1).log())


def second_order(at: Keys) -> Columns:
    """Means and variances by dimension of the sub-blocks: the log of a mean of exponentials to its second cumulant."""
    blocks, subs = at.sub_count.shape
    kv_heads, _, block, dim = at.keys.shape
    parts = at.keys.reshape(kv_heads, blocks * subs, block // subs, dim).float()
    variance = parts.var(2, unbiased=False).transpose(1, 2)
    means = sub_means(at)
    return Columns(
        torch.cat([means.keys, variance / 2], 1), means.bias, lambda rows: torch.cat([rows, rows * rows], -1)
    )


SCORES: dict[str, Callable[[Keys], Columns]] = {
    score.__name__: score for score in (sampled_rows, sub_means, block_means, second_order)
}


class Energy(NamedTuple):
    """What a tile's sampled rows say of each block; both float32 ``[Hkv, tiles, blocks]`` and adding up to one by tile.

    Attributes:
        mass: mean share of softmax mass.
        need: what selection goes by: the power mean over rows of their shares of the mass that is not on the sink. Most
            of the mass lies there, where values weigh next to nothing; and a block that a single row looks up matters
            more than its mean share says.
    """

    mass: torch.Tensor
    need: torch.Tensor


def block_energy(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """How strongly each tile attends each block, by ``config.score``.

    Args:
        q: ``[tiles, tile, Hq, D]``, queries laid on ``grid``.
        at: the keys, all blocks up to the last row's.
        grid: where the rows lie.
        config: score, sampled rows, sink and exponent.
        scale: softmax scale.
    """
    columns = SCORES[config.score](at)
    kv_heads, blocks, block, dim = at.keys.shape
    each = columns.keys.shape[2] // blocks
    group = q.shape[2] // kv_heads
    rows, valid = _sampled(grid, config.query_stride)
    picked = q.gather(1, rows[:, :, None, None].expand(-1, -1, *q.shape[2:])) * scale
    picked = columns.lift(picked.view(grid.tiles, -1, kv_heads, group, dim).permute(2, 0, 1, 3, 4))
    keys = columns.keys.to(q.dtype)
    ends = (torch.arange(blocks * each) + 1) * (block // each)
    weight = valid / (valid.sum(1, keepdim=True) * group)
    mass, need = torch.zeros(2, kv_heads, grid.tiles, blocks)
    sink = -(-config.sink // block)
    at_once = max(1, _SCORES_AT_ONCE // (q.shape[2] * rows.shape[1] * keys.shape[2]))
    for first in range(0, grid.tiles, at_once):
        tiles = slice(first, min(first + at_once, grid.tiles))
        near = min(blocks, (grid.first + tiles.stop) * grid.tile // block)
        seen = near * each
        scores = torch.bmm(picked[:, tiles].reshape(kv_heads, -1, picked.shape[-1]), keys[:, :, :seen]).float()
        scores = scores.view(kv_heads, tiles.stop - first, -1, group, seen)
        hidden = ends[None, None, :seen] > (grid.starts[tiles, None] + rows[tiles] + 1)[:, :, None]
        # Early rows may see no whole column: a finite floor keeps their softmax defined, and the tile's own blocks,
        # always attended, serve them.
        floor = torch.where(hidden, _FLOOR, columns.bias[:seen]).clamp_min(_FLOOR)
        shares = scores.add_(floor[None, :, :, None]).softmax(-1)
        shares = shares.view(*shares.shape[:-1], near, each).sum(-1)
        mass[:, tiles, :near] = torch.einsum("htrgb,tr->htb", shares, weight[tiles])
        shares[..., :sink] = 0.0
        shares /= shares.sum(-1, keepdim=True).clamp_min(_TINY)
        pooled = torch.einsum("htrgb,tr->htb", shares.pow_(config.peak), weight[tiles]).pow_(1 / config.peak)
        need[:, tiles, :near] = pooled / pooled.sum(-1, keepdim=True).clamp_min(_TINY)
    return Energy(mass, need)


def _sampled(grid: TileGrid, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of each tile that are scored, and which of them are queries, ``[tiles, sampled]``."""
    # Counted from the tile's end: its last row sees the most keys.
    sampled = torch.arange(grid.tile - 1, -1, -stride).flip(0)
    valid = grid.valid[:, sampled]
    # A tile cut short by the end of the prompt may have none of them: its last row stands in.
    none = ~valid.any(1)
    rows = sampled.repeat(grid.tiles, 1)
    last = (grid.valid * torch.arange(grid.tile)).amax(1)
    rows[none, 0] = last[none]
    valid[none, 0] = True
    return rows, valid
