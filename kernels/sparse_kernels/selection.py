"""Which key blocks a query tile attends: the max-threshold rule over key means."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.tiles import TileGrid

_TILES_AT_ONCE = 8


class BlockSelection(NamedTuple):
    """Blocks kept for each (KV head, query tile), out of those that lie wholly before the tile.

    Attributes:
        kept: bool ``[Hkv, tiles, blocks]``; False from the tile's own blocks on, which are always attended.
        coverage: float32 ``[Hkv, tiles]``, estimated softmax mass on the kept blocks and the tile's own.
    """

    kept: torch.Tensor
    coverage: torch.Tensor


def select_blocks(
    q: torch.Tensor,
    sub_mean: torch.Tensor,
    sub_count: torch.Tensor,
    grid: TileGrid,
    total: int,
    block: int,
    config: PrefillConfig,
    scale: float,
) -> BlockSelection:
    """Select key blocks by the share of softmax mass that sub-block key means predict.

    Each sampled query row scores every sub-block mean as ``q . mean * scale + log(count)``; the row softmax over all
    sub-blocks it sees whole, averaged over the sampled rows of the tile and of the GQA group, is a block's energy. A
    block is kept when its energy is at least ``config.threshold`` times the tile's largest (FlashPrefill,
    arXiv 2608.19758; finer means inside a block are our addition). Sink and window blocks are always kept.

    Args:
        q: ``[tiles, tile, Hq, D]``, queries laid on ``grid``.
        sub_mean: float32 ``[blocks, subs, Hkv, D]``.
        sub_count: int ``[blocks, subs]``.
        grid: where the rows lie.
        total: tokens of the whole prompt; its last tiles may be dense.
        block: keys a block.
        config: thresholds.
        scale: softmax scale.

    Raises:
        ValueError: when the summaries do not cover the grid's rows, or a tile is not whole blocks.
    """
    blocks = sub_mean.shape[0]
    if blocks * block < grid.prefix + grid.queries:
        raise ValueError(f"sub_mean: {blocks} blocks of {block} do not cover {grid.prefix + grid.queries} keys")
    if grid.tile % block:
        raise ValueError(f"query_tile: {grid.tile} must be a multiple of the block size {block}")
    energy = _energy(q, sub_mean, sub_count, grid, block, config.query_stride, scale)

    starts = grid.starts[:, None]
    index = torch.arange(blocks)[None]
    before = index < starts // block
    forced = (index < -(-config.sink // block)) | (index >= (starts - config.window).clamp_min(0) // block)
    if config.dense_last_tiles:
        last_tile = (total - 1) // grid.tile
        forced |= starts // grid.tile > last_tile - config.dense_last_tiles
    strong = energy >= config.threshold * energy.amax(-1, keepdim=True)
    kept = (strong | forced) & before
    return BlockSelection(kept, (energy * (kept | ~before)).sum(-1))


def _energy(
    q: torch.Tensor,
    sub_mean: torch.Tensor,
    sub_count: torch.Tensor,
    grid: TileGrid,
    block: int,
    stride: int,
    scale: float,
) -> torch.Tensor:
    """Mean share of softmax mass, float32 ``[Hkv, tiles, blocks]``; a tile's shares add up to one."""
    blocks, subs, kv_heads, dim = sub_mean.shape
    group = q.shape[2] // kv_heads
    # Counted from the tile's end: its last row sees the most keys.
    sampled = torch.arange(grid.tile - 1, -1, -stride).flip(0)
    valid = grid.valid[:, sampled]
    # A tile cut short by the end of the prompt may have none of them: its last row stands in.
    none = ~valid.any(1)
    rows = sampled.repeat(grid.tiles, 1)
    last = (grid.valid * torch.arange(grid.tile)).amax(1)
    rows[none, 0] = last[none]
    valid[none, 0] = True
    picked = q.gather(1, rows[:, :, None, None].expand(-1, -1, *q.shape[2:]))
    picked = picked.view(grid.tiles, -1, kv_heads, group, dim).permute(2, 0, 1, 3, 4)
    keys = sub_mean.permute(2, 3, 0, 1).reshape(kv_heads, dim, blocks * subs).to(q.dtype)
    bias = sub_count.reshape(-1).float().log()
    ends = (torch.arange(blocks * subs) + 1) * (block // subs)
    weight = valid / (valid.sum(1, keepdim=True) * group)
    energy = torch.zeros(kv_heads, grid.tiles, blocks)
    for first in range(0, grid.tiles, _TILES_AT_ONCE):
        tiles = slice(first, min(first + _TILES_AT_ONCE, grid.tiles))
        near = min(blocks, (grid.first + tiles.stop) * grid.tile // block)
        seen = near * subs
        scores = torch.bmm(picked[:, tiles].reshape(kv_heads, -1, dim), keys[:, :, :seen]).float()
        scores = scores.view(kv_heads, tiles.stop - first, -1, group, seen).mul_(scale)
        hidden = ends[None, None, :seen] > (grid.starts[tiles, None] + rows[tiles] + 1)[:, :, None]
        # Early rows may see no whole sub-block: a finite floor keeps their softmax defined, and the tile's own blocks,
        # always attended, serve them.
        floor = torch.where(hidden, torch.finfo(torch.float32).min, bias[:seen]).clamp_min(
            torch.finfo(torch.float32).min
        )
        shares = scores.add_(floor[None, :, :, None]).softmax(-1).mul_(weight[None, tiles, :, None, None])
        energy[:, tiles, :near] = shares.sum((2, 3)).view(kv_heads, -1, near, subs).sum(-1)
    return energy
