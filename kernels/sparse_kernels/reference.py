"""The definitions, in plain torch and float64: what the kernels must compute, without regard to cost."""

from __future__ import annotations

import torch

from sparse_kernels.paged import PagedSequence


def _contiguous(sequence: PagedSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[Hkv, length, D]`` in float64."""
    keys, values = (part.flatten(1, 2)[:, : sequence.length].double() for part in sequence.gather())
    return keys, values


def block_sparse_prefill_reference(
    q: torch.Tensor,
    sequence: PagedSequence,
    kept: torch.Tensor,
    query_tile: int,
    scale: float,
    *,
    mean_correction: bool,
) -> torch.Tensor:
    """Causal attention of ``q`` over kept blocks, own tile, and means of pruned blocks.

    Args:
        q: ``[T, Hq, D]``, the last T tokens of ``sequence``.
        sequence: keys and values, prefix included.
        kept: bool ``[Hkv, tiles, blocks]``, blocks kept out of those wholly before the tile.
        query_tile: rows a tile, on the absolute grid.
        scale: softmax scale.
        mean_correction: whether a pruned block enters the softmax as its mean with weight ``log(block)``.

    Returns:
        float64 ``[T, Hq, D]``.
    """
    queries, heads, dim = q.shape
    group = sequence.group(heads)
    keys, values = _contiguous(sequence)
    prefix, block = sequence.length - queries, sequence.page
    out = torch.empty(queries, heads, dim, dtype=torch.float64)
    for row in range(queries):
        position = prefix + row
        tile_start = position // query_tile * query_tile
        tile = position // query_tile - prefix // query_tile
        for head in range(heads):
            kv_head = head // group
            columns_k, columns_v, bias = [], [], []
            for number in range(tile_start // block):
                at = slice(number * block, (number + 1) * block)
                if kept[kv_head, tile, number]:
                    columns_k.append(keys[kv_head, at])
                    columns_v.append(values[kv_head, at])
                    bias.append(torch.zeros(block, dtype=torch.float64))
                elif mean_correction:
                    columns_k.append(keys[kv_head, at].mean(0, keepdim=True))
                    columns_v.append(values[kv_head, at].mean(0, keepdim=True))
                    bias.append(torch.tensor([float(block)], dtype=torch.float64).log())
            columns_k.append(keys[kv_head, tile_start : position + 1])
            columns_v.append(values[kv_head, tile_start : position + 1])
            bias.append(torch.zeros(position + 1 - tile_start, dtype=torch.float64))
            scores = torch.cat(columns_k) @ q[row, head].double() * scale + torch.cat(bias)
            out[row, head] = scores.softmax(-1) @ torch.cat(columns_v)
    return out


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
