"""Scores of methods that guess a tile's attention from that of the last rows, or from pooled queries."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores.energy import TINY, Energy, Keys, earlier, normalized

_LAST_ROWS = 64
# Below this distance pooled queries are trusted (FlexPrefill's tau).
_TRUSTED = 0.1


def vertical_slash(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Vertical and slanted lines in the attention of the last 64 rows (MInference, arXiv 2407.02490).

    The paper keeps the strongest lines; here a block's score is the mass of the lines that cross it, so that any rule
    can choose among blocks.
    """
    del config
    kv_heads, blocks, block, _ = at.keys.shape
    rows = min(grid.queries, _LAST_ROWS)
    total = grid.prefix + grid.queries
    weights = _attention(grid.join(q)[-rows:], at, total, scale).mean(1)
    vertical = pad(weights.mean(1), (0, blocks * block - total)).view(kv_heads, blocks, block).sum(-1)
    # Shifted so that a column holds one distance between query and key: row r has its distance 0 at total - rows + r.
    distances = torch.arange(total - rows, total)[:, None] - torch.arange(total)[None]
    slash = weights.new_zeros(kv_heads, total)
    flat = distances.clamp_min(0).flatten().expand(kv_heads, -1)
    slash.scatter_add_(1, flat, (weights * (distances >= 0)).flatten(1))
    slash = pad(slash / rows, (0, blocks * block - total)).view(kv_heads, blocks, block).sum(-1)
    # A block meets the lines of all distances between the tile's rows and its keys.
    apart = grid.starts[:, None] // block - torch.arange(blocks)[None]
    crossed = torch.zeros(kv_heads, grid.tiles, blocks)
    for step in range(-1, grid.tile // block):
        at_distance = apart + step
        found = slash[:, at_distance.clamp(0, blocks - 1)]
        crossed += found * ((at_distance >= 0) & (at_distance < blocks))
    need = normalized((vertical[:, None] + crossed) * earlier(grid, blocks, block))
    return Energy(need, need)


def flex(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """Pooled queries against pooled keys where they tell the truth, else lines (FlexPrefill, arXiv 2502.20766).

    Whether they do is judged by the Jensen-Shannon distance between the blocks' shares that the mean of the last rows
    gives and those that the rows themselves give, for each KV head.
    """
    kv_heads, blocks, block, dim = at.keys.shape
    rows = min(grid.queries, _LAST_ROWS)
    total = grid.prefix + grid.queries
    mean, _ = at.means()
    last = grid.join(q)[-rows:]
    true = _attention(last, at, total, scale).mean((1, 2))
    true = pad(true, (0, blocks * block - total)).view(kv_heads, blocks, block).sum(-1)
    grouped = last.mean(0).view(kv_heads, -1, dim).float()
    guess = (torch.einsum("hgd,bhd->hgb", grouped, mean) * scale).softmax(-1).mean(1)
    middle = (true + guess) / 2
    distance = sum((part * ((part + TINY) / (middle + TINY)).log()).sum(-1) for part in (true, guess)) / 2
    trusted = torch.as_tensor(distance).clamp_min(0).sqrt() < _TRUSTED
    valid = grid.valid
    pooled = (q.float() * valid[:, :, None, None]).sum(1) / valid.sum(1)[:, None, None]
    scores = torch.einsum("thgd,bhd->htgb", pooled.view(grid.tiles, kv_heads, -1, dim), mean) * scale
    scores.masked_fill_(~earlier(grid, blocks, block)[None, :, None], float("-inf"))
    aware = normalized(scores.softmax(-1).mean(2))
    need = torch.where(trusted[:, None, None], aware, vertical_slash(q, at, grid, config, scale).need)
    return Energy(need, need)


def _attention(rows: torch.Tensor, at: Keys, total: int, scale: float) -> torch.Tensor:
    """Softmax of the prompt's last rows ``[R, Hq, D]`` over all keys, float32 ``[Hkv, group, R, total]``."""
    kv_heads, dim = at.keys.shape[0], at.keys.shape[3]
    count = rows.shape[0]
    grouped = rows.view(count, kv_heads, -1, dim).permute(1, 2, 0, 3).float()
    keys = at.keys.flatten(1, 2)[:, None, :total].float()
    scores = grouped @ keys.transpose(2, 3) * scale
    hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
    scores[..., total - count :].masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)
