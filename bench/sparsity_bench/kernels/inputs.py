"""Queries, keys and values with structure: attention that looks back at a few topics, at the sink, and near itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sparse_kernels import PagedSequence, PageSummaries
from sparse_kernels.gpu.page_summaries import summarize_pages

PAGE, SUB_PAGE, TILE = 64, 16, 128
# Keys that share a topic, and how strongly keys and queries are of it.
_RUN, _STRENGTH = 256, 1.6


class Shape(NamedTuple):
    """Heads of a layer."""

    heads: int
    kv_heads: int
    dim: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads} heads, d={self.dim}"

    def of(self, dtype: torch.dtype) -> str:
        """As rows have it: with its numbers where they are float16."""
        return f"{self}, float16" if dtype == torch.float16 else str(self)


class Inputs(NamedTuple):
    """One layer's attention of one sequence.

    Attributes:
        q: ``[T, Hq, D]``.
        sequence: keys and values on shuffled pages.
        summaries: of these pages.
        scale: softmax scale.
    """

    q: torch.Tensor
    sequence: PagedSequence
    summaries: PageSummaries
    scale: float

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in logical order, ``[1, Hkv, T, D]`` each."""
        keys, values = (part.flatten(1, 2)[None, :, : self.sequence.length] for part in self.sequence.gather())
        return keys.contiguous(), values.contiguous()


def inputs(shape: Shape, length: int, device: str, dtype: torch.dtype, queries: int | None = None) -> Inputs:
    """Draws them, the same at every call; ``queries`` are the last so many tokens, all without it."""
    generator = torch.Generator(device=device).manual_seed(length)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    blocks, rows = -(-length // PAGE), queries or length
    topics = normal(max(4, length // 2048), shape.kv_heads, shape.dim)
    runs = torch.randint(topics.shape[0], (-(-length // _RUN) + 1,), generator=generator, device=device)
    at = torch.arange(length, device=device)
    keys = normal(length, shape.kv_heads, shape.dim) + _STRENGTH * topics[runs[at // _RUN]]
    keys[:4] += 4 * topics[0]
    values = normal(length, shape.kv_heads, shape.dim)
    own = _STRENGTH * topics[runs[at[-rows:] // _RUN]]
    grouped = own[:, :, None] + normal(rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.dim)
    table = torch.randperm(blocks, generator=generator, device=device)
    caches = torch.zeros(2, blocks, PAGE, shape.kv_heads, shape.dim, device=device, dtype=dtype)
    for cache, part in zip(caches, (keys, values), strict=True):
        padded = torch.zeros(blocks * PAGE, *part.shape[1:], device=device)
        padded[:length] = part
        cache[table] = padded.view(blocks, PAGE, *part.shape[1:]).to(dtype)
    sequence = PagedSequence(caches[0], caches[1], table, length)
    summaries = PageSummaries(blocks, PAGE, shape.kv_heads, shape.dim, SUB_PAGE, device, dtype)
    filled = (length - torch.arange(blocks, device=device) * PAGE).clamp_max(PAGE).int()
    summarize_pages(summaries, caches[0], caches[1], table.int(), filled)
    return Inputs(grouped.flatten(1, 2).to(dtype), sequence, summaries, shape.dim**-0.5)
