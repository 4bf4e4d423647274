"""The definitions, in plain torch and float64: what the kernels must compute, without regard to cost."""

from __future__ import annotations

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.paged import PagedSequence


def _contiguous(sequence: PagedSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[Hkv, length, D]`` in float64."""
    keys, values = (part.flatten(1, 2)[:, : sequence.length].double() for part in sequence.gather())
    return keys, values


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
    keys, values = _contiguous(sequence)
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


def sparse_paged_decode_reference(
    q: torch.Tensor, sequence: PagedSequence, pages: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of one row over chosen logical pages of each KV head.

    Args:
        q: ``[Hq, D]``, the newest token's query.
        sequence: keys and values.
        pages: int64 ``[Hkv, n]``, logical pages.
        scale: softmax scale.

    Returns:
        float64 ``[Hq, D]``.
    """
    heads, dim = q.shape
    group = sequence.group(heads)
    keys, values = _contiguous(sequence)
    out = torch.empty(heads, dim, dtype=torch.float64)
    for head in range(heads):
        positions = torch.cat(
            [
                torch.arange(page * sequence.page, min((page + 1) * sequence.page, sequence.length))
                for page in pages[head // group].tolist()
            ]
        )
        scores = keys[head // group, positions] @ q[head].double() * scale
        out[head] = scores.softmax(-1) @ values[head // group, positions]
    return out
