"""The definition of block-sparse prefill, in plain torch and float64, without regard to cost."""

from __future__ import annotations

import torch

from sparse_kernels.layout.paged import PagedSequence


def block_sparse_prefill_reference(
    q: torch.Tensor,
    sequence: PagedSequence,
    kept: torch.Tensor,
    query_tile: int,
    scale: float,
    *,
    mean_correction: bool,
    mean_blocks: int = 1,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of ``q`` over kept blocks, own tile, and means of pruned blocks.

    Args:
        q: ``[T, Hq, D]``, the last T tokens of ``sequence``.
        sequence: keys and values, prefix included.
        kept: bool ``[Hkv, tiles, blocks]``, blocks kept out of those wholly before the tile.
        query_tile: rows a tile, on the absolute grid.
        scale: softmax scale.
        mean_correction: whether what is pruned enters the softmax by means, with the weight of its pruned keys.
        mean_blocks: blocks behind a mean; units that do not lie wholly before the tile have none.
        window: keys that a row sees, its own included; 0 for all. A mean is seen while its unit's first key is.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 leaves them.

    Returns:
        float64 ``[T, Hq, D]``, and the log-sum-exp of the scores, float64 ``[T, Hq]``.
    """
    queries, heads, dim = q.shape
    group = sequence.group(heads)
    keys, values = sequence.contiguous()
    prefix, block = sequence.length - queries, sequence.page
    out = torch.empty(queries, heads, dim, dtype=torch.float64)
    lse = torch.empty(queries, heads, dtype=torch.float64)
    for row in range(queries):
        position = prefix + row
        tile_start = position // query_tile * query_tile
        tile = position // query_tile - prefix // query_tile
        for head in range(heads):
            kv_head = head // group
            seen = max(0, position + 1 - window) if window else 0
            columns_k, columns_v, bias = [], [], []
            for number in range(tile_start // block):
                at = slice(max(number * block, seen), max((number + 1) * block, seen))
                if kept[kv_head, tile, number]:
                    columns_k.append(keys[kv_head, at])
                    columns_v.append(values[kv_head, at])
                    bias.append(torch.zeros(at.stop - at.start, dtype=torch.float64))
            for first in range(
                0, tile_start // block // mean_blocks * mean_blocks if mean_correction else 0, mean_blocks
            ):
                pruned = int((~kept[kv_head, tile, first : first + mean_blocks]).sum())
                if pruned and first * block >= seen:
                    at = slice(first * block, (first + mean_blocks) * block)
                    columns_k.append(keys[kv_head, at].mean(0, keepdim=True))
                    columns_v.append(values[kv_head, at].mean(0, keepdim=True))
                    bias.append(torch.tensor([float(pruned * block)], dtype=torch.float64).log())
            own = max(tile_start, seen)
            columns_k.append(keys[kv_head, own : position + 1])
            columns_v.append(values[kv_head, own : position + 1])
            bias.append(torch.zeros(position + 1 - own, dtype=torch.float64))
            scores = torch.cat(columns_k) @ q[row, head].double() * scale
            if softcap:
                scores = softcap * (scores / softcap).tanh()
            scores += torch.cat(bias)
            out[row, head] = scores.softmax(-1) @ torch.cat(columns_v)
            lse[row, head] = scores.logsumexp(-1)
    return out, lse
