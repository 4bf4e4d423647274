"""Fixed patterns: which blocks a tile attends does not depend on what it looks for (only buckets look at it at all).

They decide by `need`; `mass`, from which coverage is estimated, is that of block means. With a rule that keeps a share
of the blocks (`top_k`) the share is the pattern's density; sink and window come on top.
"""

from __future__ import annotations

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores.columns import block_means, by_columns
from sparse_kernels.scores.energy import Energy, Keys, earlier, normalized

_BUCKETS, _ROUNDS = 8, 16
_mean_mass = by_columns(block_means)


def window_only(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Sink and window alone (Longformer's global and local attention, arXiv 2004.05150); for rule `top_p`."""
    mass = _mean_mass(q, at, grid, config, scale).mass
    return Energy(mass, torch.zeros_like(mass))


def random_blocks(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Random blocks for each KV head and tile, besides sink and window (BigBird, arXiv 2007.14062)."""
    kv_heads, blocks = at.keys.shape[:2]
    # By absolute positions, so that chunks and repeats draw alike.
    state = torch.arange(kv_heads)[:, None, None] * 1_000_003 + torch.arange(blocks)[None, None] * 7_919
    state = state + (grid.starts // grid.tile)[None, :, None] * 104_729
    for factor in (0x45D9F3B, 0x119DE1F3):
        state = ((state ^ (state >> 16)) * factor) & 0xFFFFFFFF
    return _pattern((state.double() + 1) / 2**32, q, at, grid, config, scale)


def strided_blocks(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Blocks at even steps (Sparse Transformer's strided attention, arXiv 1904.10509).

    Blocks come in the order of their bits reversed, so that the first of them, however many, lie evenly spread.
    """
    blocks = at.keys.shape[1]
    index, spread, unit = torch.arange(blocks), torch.zeros(blocks, dtype=torch.float64), 0.5
    while index.any():
        spread += unit * (index % 2)
        index, unit = index // 2, unit / 2
    return _pattern((1 - spread).expand(at.keys.shape[0], grid.tiles, -1), q, at, grid, config, scale)


def lsh_buckets(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Blocks whose mean key shares the most buckets with the tile's mean query (Reformer, arXiv 2001.04451).

    Buckets are those of random rotations. Reformer hashes tokens of models with one projection for queries and keys;
    here the means of tiles and blocks of any model are hashed.
    """
    kv_heads, dim = at.keys.shape[0], at.keys.shape[3]
    rotations = torch.randn(_ROUNDS, dim, _BUCKETS // 2, generator=torch.Generator().manual_seed(0))
    keys, _ = at.means()
    queries = q.float().sum(1).view(grid.tiles, kv_heads, -1, dim).mean(2)
    hashed = []
    for means in (keys, queries):
        turned = torch.einsum("nhd,rdb->rnhb", means, rotations)
        hashed.append(torch.cat([turned, -turned], -1).argmax(-1))
    same = (hashed[0][:, None] == hashed[1][:, :, None]).sum(0).permute(2, 0, 1)
    # Among equals the latest blocks first.
    tie = torch.arange(1, same.shape[2] + 1) / (2 * same.shape[2] + 2)
    return _pattern(same.double() + tie, q, at, grid, config, scale)


def _pattern(
    need: torch.Tensor, q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float
) -> Energy:
    blocks, block = at.keys.shape[1:3]
    mass = _mean_mass(q, at, grid, config, scale).mass
    return Energy(mass, normalized(need * earlier(grid, blocks, block)).float())
