"""The definitions of the published scores, in plain torch and float64, a row, tile and block at a time.

All take q ``[T, Hq, D]``, a whole prompt, and keys ``[Hkv, T, D]``, and return what a tile needs of each block, float64
``[Hkv, tiles, blocks]``; those of softmaxed columns are in :mod:`sparse_kernels.reference.block_selection`.
"""

from __future__ import annotations

import torch

from sparse_kernels.config import PrefillConfig

_LAST_ROWS = 64


def antidiagonal_reference(
    q: torch.Tensor, keys: torch.Tensor, block: int, config: PrefillConfig, scale: float
) -> torch.Tensor:
    """Shares of antidiagonal sums, pooled over the squares of rows of a tile (XAttention, arXiv 2503.16428)."""
    stride, tile, length = config.query_stride, config.query_tile, q.shape[0]
    kv_heads, group = keys.shape[0], q.shape[1] // keys.shape[0]
    tiles, blocks = -(-length // tile), -(-length // block)
    padded = torch.zeros(tiles * tile, *q.shape[1:], dtype=torch.float64)
    padded[:length] = q.double()
    longer = torch.zeros(kv_heads, blocks * block, keys.shape[2], dtype=torch.float64)
    longer[:, :length] = keys.double()
    need = torch.zeros(kv_heads, tiles, blocks, dtype=torch.float64)
    for number in range(tiles):
        squares = [first for first in range(number * tile, (number + 1) * tile, stride) if first + stride <= length]
        squares = squares or [(length - 1) // stride * stride]
        for head in range(q.shape[1]):
            for first in squares:
                seen = (first + stride) // stride
                scores = torch.zeros(seen, dtype=torch.float64)
                for column in range(seen):
                    for step in range(stride):
                        key = longer[head // group, column * stride + step]
                        scores[column] += padded[first + stride - 1 - step, head] @ key
                shares = torch.zeros(blocks, dtype=torch.float64)
                shares.index_add_(0, torch.arange(seen) * stride // block, (scores * scale / stride).softmax(-1))
                shares[: -(-config.sink // block)] = 0.0
                shares /= shares.sum().clamp_min(1e-30)
                need[head // group, number] += shares**config.peak / (len(squares) * group)
    need **= 1 / config.peak
    return need / need.sum(-1, keepdim=True).clamp_min(1e-30)


def last_rows_reference(q: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax of the last 64 rows, mean over the group, float64 ``[Hkv, rows, T]``."""
    length, kv_heads = q.shape[0], keys.shape[0]
    group, rows = q.shape[1] // kv_heads, min(length, _LAST_ROWS)
    found = torch.zeros(kv_heads, rows, length, dtype=torch.float64)
    for head in range(q.shape[1]):
        for row in range(rows):
            position = length - rows + row
            scores = keys[head // group, : position + 1].double() @ q[position, head].double() * scale
            found[head // group, row, : position + 1] += scores.softmax(-1) / group
    return found


def vertical_slash_reference(
    q: torch.Tensor, keys: torch.Tensor, block: int, config: PrefillConfig, scale: float
) -> torch.Tensor:
    """Mass of the vertical lines in a block and of the slanted ones that cross it (MInference, arXiv 2407.02490)."""
    weights = last_rows_reference(q, keys, scale)
    kv_heads, rows, length = weights.shape
    tile, tiles, blocks = config.query_tile, -(-length // config.query_tile), -(-length // block)
    vertical, slash = torch.zeros(2, kv_heads, blocks, dtype=torch.float64)
    for row in range(rows):
        for column in range(length - rows + row + 1):
            vertical[:, column // block] += weights[:, row, column] / rows
            slash[:, (length - rows + row - column) // block] += weights[:, row, column] / rows
    need = torch.zeros(kv_heads, tiles, blocks, dtype=torch.float64)
    for number in range(tiles):
        for at in range(min(blocks, (number + 1) * tile // block)):
            apart = number * tile // block - at
            crossed = [apart + step for step in range(-1, tile // block) if 0 <= apart + step < blocks]
            need[:, number, at] = vertical[:, at] + slash[:, crossed].sum(1)
    return need / need.sum(-1, keepdim=True)


def flex_reference(
    q: torch.Tensor, keys: torch.Tensor, block: int, config: PrefillConfig, scale: float, trusted: float = 0.1
) -> torch.Tensor:
    """Pooled queries against pooled keys, or lines where those mislead (FlexPrefill, arXiv 2502.20766)."""
    length, kv_heads = q.shape[0], keys.shape[0]
    group, tile, rows = q.shape[1] // kv_heads, config.query_tile, min(length, _LAST_ROWS)
    starts = range(0, length, block)
    means = torch.stack([keys[:, first : first + block].double().mean(1) for first in starts], 1)
    weights = last_rows_reference(q, keys, scale).mean(1)
    need = vertical_slash_reference(q, keys, block, config, scale)
    for head in range(kv_heads):
        true = torch.stack([weights[head, first : first + block].sum() for first in starts])
        heads = range(head * group, (head + 1) * group)
        guesses = [(means[head] @ q[-rows:, each].double().mean(0) * scale).softmax(-1) for each in heads]
        guess = torch.stack(guesses).mean(0)
        middle = (true + guess) / 2
        distance = sum(torch.special.xlogy(part, part / middle).sum() for part in (true, guess)) / 2
        if max(float(distance), 0.0) ** 0.5 >= trusted:
            continue
        for number in range(need.shape[1]):
            seen = min(len(starts), (number + 1) * tile // block)
            pooled = q[number * tile : (number + 1) * tile].double().mean(0)
            shares = [(means[head, :seen] @ pooled[each] * scale).softmax(-1) for each in heads]
            need[head, number] = 0.0
            need[head, number, :seen] = torch.stack(shares).mean(0)
    return need
