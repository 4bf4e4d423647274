"""The definition of selection by scores, in plain torch and float64."""

from __future__ import annotations

import torch

from sparse_kernels.config import PrefillConfig


def block_energy_reference(
    q: torch.Tensor, keys: torch.Tensor, block: int, sub: int, config: PrefillConfig, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What sampled rows say of each block, a row at a time; see :class:`sparse_kernels.scores.Energy`.

    Args:
        q: ``[T, Hq, D]``, a whole prompt.
        keys: ``[Hkv, T, D]``.
        block: keys a block.
        sub: keys a sub-block.
        config: score, tile, sampled rows, sink and exponent.
        scale: softmax scale.

    Returns:
        Mass and need, float64 ``[Hkv, tiles, blocks]`` each.
    """
    tile, stride, score = config.query_tile, config.query_stride, config.score
    length, heads, kv_heads = q.shape[0], q.shape[1], keys.shape[0]
    group, keys = heads // kv_heads, keys.double()
    size = {"sampled_rows": 1, "block_means": block}.get(score, sub)
    mass, need = torch.zeros(2, kv_heads, -(-length // tile), -(-length // block), dtype=torch.float64)
    for number in range(mass.shape[1]):
        ends = range((number + 1) * tile - 1, number * tile - 1, -stride)
        rows = [row for row in ends if row < length] or [length - 1]
        for row in rows:
            whole = (row + 1) // size
            for head in range(heads) if whole else ():
                query = q[row, head].double() * scale
                parts = keys[head // group, : whole * size].view(whole, size, -1)
                scores = parts.mean(1) @ query + torch.tensor(float(size), dtype=torch.float64).log()
                if score == "second_order":
                    scores += parts.var(1, unbiased=False) @ query.square() / 2
                at = torch.arange(whole) * size // block
                shares = torch.zeros(mass.shape[2], dtype=torch.float64).index_add_(0, at, scores.softmax(-1))
                mass[head // group, number] += shares / (len(rows) * group)
                shares[: -(-config.sink // block)] = 0.0
                shares /= shares.sum().clamp_min(1e-30)
                need[head // group, number] += shares**config.peak / (len(rows) * group)
    need **= 1 / config.peak
    return mass, need / need.sum(-1, keepdim=True).clamp_min(1e-30)
