"""Paged test sequences."""

from __future__ import annotations

import torch
from sparse_kernels import PagedSequence, PageSummaries

PAGE, SUB = 16, 4


def paged(
    length: int,
    kv_heads: int = 2,
    dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    page: int = PAGE,
    sub: int = SUB,
) -> tuple[PagedSequence, PageSummaries]:
    """A sequence on shuffled pages whose unwritten slots are poisoned, and its summaries."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-length // page)
    keys, values = (torch.randn(blocks * page, kv_heads, dim, generator=generator) for _ in range(2))
    keys += 2.0 * torch.randn(blocks, kv_heads, dim, generator=generator).repeat_interleave(page, 0)
    keys[length:], values[length:] = float("nan"), float("nan")
    table = torch.randperm(blocks + 3, generator=generator)[:blocks]
    cache_k, cache_v = (torch.full((blocks + 3, page, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    cache_k[table] = keys.view(blocks, page, kv_heads, dim).to(dtype)
    cache_v[table] = values.view(blocks, page, kv_heads, dim).to(dtype)
    summaries = PageSummaries(blocks + 3, page, kv_heads, dim, sub)
    filled = torch.full((blocks,), page)
    filled[-1] = length - (blocks - 1) * page
    summaries.update(cache_k, cache_v, table, filled)
    return PagedSequence(cache_k, cache_v, table, length), summaries


def joined(
    lengths: list[int],
    kv_heads: int = 2,
    dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    page: int = PAGE,
    sub: int = SUB,
) -> tuple[list[PagedSequence], PageSummaries]:
    """Several sequences in one cache, whose summaries are as wide as it is."""
    parts = [paged(length, kv_heads, dim, seed + number, dtype, page, sub)[0] for number, length in enumerate(lengths)]
    keys, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("keys", "values"))
    firsts = torch.tensor([0] + [part.keys.shape[0] for part in parts]).cumsum(0)
    sequences = [
        PagedSequence(keys, values, part.table + first, part.length) for part, first in zip(parts, firsts, strict=False)
    ]
    summaries = PageSummaries(keys.shape[0], page, kv_heads, dim, sub, dtype=dtype)
    for sequence in sequences:
        summaries.refresh(sequence)
    return sequences, summaries


def queries(rows: int, heads: int = 4, dim: int = 8, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random query rows."""
    return torch.randn(rows, heads, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_ratio(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference over that of the wanted."""
    difference = (found.double() - wanted.double()).square().mean().sqrt()
    return float(difference / wanted.double().square().mean().sqrt())
