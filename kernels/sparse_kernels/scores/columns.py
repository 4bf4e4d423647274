"""Scores that are softmaxes of query rows over columns which stand for keys, added up by block.

They differ in what a row and a column is. `sampled_rows` looks at every key for few rows and is nearest to the truth:
rows of a tile attend alike, keys of a block do not. `antidiagonal` looks at sums of many rows and keys. The others look
at summaries of keys, and so need not read the keys at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores.energy import TINY, Energy, Keys, Score, headroom, normalized

# Enough rows for a matrix multiplication at full speed, few enough that their scores stay in the cache.
_SCORES_AT_ONCE = 2**22


class Columns(NamedTuple):
    """What rows are scored against.

    Attributes:
        keys: ``[Hkv, D', columns]``, equally many columns a block.
        bias: float32 ``[columns]``, added to the scores; the log of the keys behind a column; None for one key each.
        lift: takes queries ``[..., D]``, already scaled, to ``[..., D']``.
    """

    keys: torch.Tensor
    bias: torch.Tensor | None
    lift: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows


class Rows(NamedTuple):
    """What is scored of each tile.

    Attributes:
        queries: ``[tiles, R, Hq, D']``, not scaled.
        last: int64 ``[tiles, R]`` or ``[R]``, the last row of the tile behind each.
        valid: bool ``[tiles, R]``, False for what must not count.
    """

    queries: torch.Tensor
    last: torch.Tensor
    valid: torch.Tensor


def sampled_rows(at: Keys) -> Columns:
    """Every key for itself: exact rows of the attention matrix (SampleAttention, arXiv 2406.15486)."""
    kv_heads, blocks, block, dim = at.keys.shape
    return Columns(at.keys.reshape(kv_heads, blocks * block, dim).transpose(1, 2), None)


def sub_means(at: Keys) -> Columns:
    """Means of the sub-blocks, from the page summaries."""
    return Columns(at.sub_mean.permute(2, 3, 0, 1).flatten(2), at.sub_count.reshape(-1).float().log())


def block_means(at: Keys) -> Columns:
    """Means of whole blocks (FlashPrefill, arXiv 2608.19758; MoBA, arXiv 2502.13189)."""
    mean, count = at.means()
    return Columns(mean.permute(1, 2, 0), count.log())


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


def by_columns(kind: Callable[[Keys], Columns]) -> Score:
    """The score that scores every ``config.query_stride``-th row of a tile against these columns."""

    def score(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
        return _energy(_sampled(q, grid, config.query_stride), kind(at), at, grid, config, scale)

    return score


def antidiagonal(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Sums over antidiagonals of squares of ``config.query_stride`` rows and keys (XAttention, arXiv 2503.16428).

    Every row and key of a square is in its sum once, so no vertical or slanted line of attention is missed.

    Raises:
        ValueError: when ``query_stride`` does not divide the block size.
    """
    stride, (kv_heads, _, block, dim) = config.query_stride, at.keys.shape
    if block % stride:
        raise ValueError(f"query_stride: {stride} must divide the block size {block}")
    keys = at.keys.reshape(kv_heads, -1, stride * dim).transpose(1, 2)
    tiles, tile, heads, _ = q.shape
    squares = q.view(tiles, -1, stride, heads, dim).flip(2).permute(0, 1, 3, 2, 4).flatten(3)
    valid = grid.valid.view(tiles, -1, stride).all(-1)
    last = torch.arange(stride - 1, tile, stride)
    # A tile too short for any whole square: the one that holds its last row stands in, its padding rows are zero.
    none = ~valid.any(1)
    stand_in = (grid.valid * torch.arange(tile)).amax(1) // stride
    valid[none, stand_in[none]] = True
    return _energy(Rows(squares, last, valid), Columns(keys, None), at, grid, config, scale / stride)


def _energy(rows: Rows, columns: Columns, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    kv_heads, blocks, block, _ = at.keys.shape
    each = columns.keys.shape[2] // blocks
    heads, dim = rows.queries.shape[2:]
    group = heads // kv_heads
    picked = (rows.queries * scale).view(grid.tiles, -1, kv_heads, group, dim).permute(2, 0, 1, 3, 4)
    picked = columns.lift(picked)
    keys = columns.keys.to(picked.dtype).contiguous()
    last = rows.last.expand(grid.tiles, -1)
    ends = (torch.arange(blocks * each) + 1) * (block // each)
    weight = (rows.valid / (rows.valid.sum(1, keepdim=True) * group)).repeat_interleave(group, 1)
    mass, need = torch.zeros(2, kv_heads, grid.tiles, blocks)
    sink = -(-config.sink // block)
    at_once = max(1, _SCORES_AT_ONCE // (heads * last.shape[1] * keys.shape[2]))
    # Used again and again: to map a buffer costs more than to fill it.
    room = keys.new_empty(2, min(at_once, grid.tiles) * heads * last.shape[1] * keys.shape[2])
    floor = torch.finfo(keys.dtype).min
    for first in range(0, grid.tiles, at_once):
        tiles = slice(first, min(first + at_once, grid.tiles))
        near = min(blocks, (grid.first + tiles.stop) * grid.tile // block)
        seen, own = near * each, (grid.first + first) * grid.tile // block * each
        queries = picked[:, tiles].reshape(kv_heads, -1, picked.shape[-1])
        scores, shares = room[:, : queries[..., 0].numel() * seen].view(2, *queries.shape[:2], seen)
        torch.bmm(queries, keys[:, :, :seen], out=scores)
        if columns.bias is not None:
            scores += columns.bias[:seen].clamp_min(floor)
        # Early rows may see no whole column: a finite floor keeps their softmax defined, and the tile's own blocks,
        # always attended, serve them.
        hidden = ends[None, None, own:seen] > (grid.starts[tiles, None] + last[tiles] + 1)[:, :, None]
        parts = scores.view(kv_heads, tiles.stop - first, -1, group, seen)
        parts[..., own:].masked_fill_(hidden[None, :, :, None], floor)
        torch.softmax(scores, -1, out=shares)
        shares = shares.view(kv_heads, tiles.stop - first, -1, near, each).sum(-1).float()
        mass[:, tiles, :near] = _mean(shares, weight[tiles])
        shares[..., :sink] = 0.0
        shares /= shares.sum(-1, keepdim=True).clamp_min(TINY)
        if config.peak != 1:
            shares.mul_(headroom(config.peak)).pow_(config.peak)
        need[:, tiles, :near] = normalized(_mean(shares, weight[tiles]).pow_(1 / config.peak))
    return Energy(mass, need)


def _mean(shares: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of ``[Hkv, tiles, rows, blocks]`` over the rows, which count by ``weight``, ``[tiles, rows]``."""
    return (weight[None, :, None] @ shares).squeeze(2)


def _sampled(q: torch.Tensor, grid: TileGrid, stride: int) -> Rows:
    """The rows of each tile that are scored."""
    # Counted from the tile's end: its last row sees the most keys.
    sampled = torch.arange(grid.tile - 1, -1, -stride).flip(0)
    valid = grid.valid[:, sampled]
    # A tile cut short by the end of the prompt may have none of them: its last row stands in.
    none = ~valid.any(1)
    rows = sampled.repeat(grid.tiles, 1)
    last = (grid.valid * torch.arange(grid.tile)).amax(1)
    rows[none, 0] = last[none]
    valid[none, 0] = True
    return Rows(q[torch.arange(grid.tiles)[:, None], rows], rows, valid)
