"""Paged test sequences."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from sparse_kernels import PagedSequence, PageSummaries

PAGE, SUB = 16, 4


def paged(
    length: int, kv_heads: int = 2, dim: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[PagedSequence, PageSummaries]:
    """A sequence on shuffled pages whose unwritten slots are poisoned, and its summaries."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-length // PAGE)
    keys, values = (torch.randn(blocks * PAGE, kv_heads, dim, generator=generator) for _ in range(2))
    keys += 2.0 * torch.randn(blocks, kv_heads, dim, generator=generator).repeat_interleave(PAGE, 0)
    keys[length:], values[length:] = float("nan"), float("nan")
    table = torch.randperm(blocks + 3, generator=generator)[:blocks]
    cache_k, cache_v = (torch.full((blocks + 3, PAGE, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    cache_k[table] = keys.view(blocks, PAGE, kv_heads, dim).to(dtype)
    cache_v[table] = values.view(blocks, PAGE, kv_heads, dim).to(dtype)
    summaries = PageSummaries(blocks + 3, PAGE, kv_heads, dim, SUB)
    filled = torch.full((blocks,), PAGE)
    filled[-1] = length - (blocks - 1) * PAGE
    summaries.update(cache_k, cache_v, table, filled)
    return PagedSequence(cache_k, cache_v, table, length), summaries


def joined(
    lengths: list[int], kv_heads: int = 2, dim: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[PagedSequence], PageSummaries]:
    """Several sequences in one cache, whose summaries are as wide as it is."""
    parts = [paged(length, kv_heads, dim, seed + number, dtype)[0] for number, length in enumerate(lengths)]
    keys, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("keys", "values"))
    firsts = torch.tensor([0] + [part.keys.shape[0] for part in parts]).cumsum(0)
    sequences = [
        PagedSequence(keys, values, part.table + first, part.length) for part, first in zip(parts, firsts, strict=False)
    ]
    summaries = PageSummaries(keys.shape[0], PAGE, kv_heads, dim, SUB, dtype=dtype)
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


def on(device: str, given: Any) -> Any:
    """The same on a device: a tensor, summaries, or a tuple, list or dictionary of such; all else as it is."""
    if isinstance(given, torch.Tensor):
        return given.to(device)
    if isinstance(given, dict):
        return {name: on(device, each) for name, each in given.items()}
    if isinstance(given, list | tuple):
        moved = [on(device, each) for each in given]
        return type(given)(*moved) if hasattr(given, "_fields") else type(given)(moved)
    if isinstance(given, PageSummaries):
        moved = copy.copy(given)
        vars(moved).update(on(device, vars(given)))
        return moved
    return given


def tensors(given: Any) -> Iterator[torch.Tensor]:
    """The tensors of what :func:`on` moves, always in the same order."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, dict | PageSummaries):
        yield from tensors(list((given if isinstance(given, dict) else vars(given)).values()))
    elif isinstance(given, list | tuple):
        for each in given:
            yield from tensors(each)
