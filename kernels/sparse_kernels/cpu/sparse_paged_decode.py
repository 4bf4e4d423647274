"""Sparse paged decode on the CPU: one query row attends its best pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_kernels.config import DecodeConfig
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.measured_coverage import measured_coverage
from sparse_kernels.stats import AttentionStats


class Pages(NamedTuple):
    """Summaries of a sequence's pages in logical order; shapes as in :class:`sparse_kernels.PageSummaries`."""

    mean: torch.Tensor
    spread: torch.Tensor
    sub_mean: torch.Tensor
    sub_count: torch.Tensor


def spread(q: torch.Tensor, at: Pages, scale: float) -> torch.Tensor:
    """``max over the group of (q . mean + 0.5 |q| spread)`` (UNIQUE, arXiv 2605.27740)."""
    dots = torch.bmm(q, at.mean.permute(1, 2, 0))
    bound: torch.Tensor = dots + 0.5 * q.norm(dim=-1, keepdim=True) * at.spread.T[:, None, :]
    return bound.amax(1)


def sub_pages(q: torch.Tensor, at: Pages, scale: float) -> torch.Tensor:
    """Logarithm of the largest share of softmax mass over the group, each sub-page's keys taken for its mean key.

    Shares themselves would underflow to equal zeros. A sub-page that answers is not drowned by the rest of its page.
    """
    pages, subs = at.sub_count.shape
    dots = torch.bmm(q, at.sub_mean.permute(2, 3, 0, 1).flatten(2)).view(*q.shape[:2], pages, subs)
    return (dots * scale + at.sub_count.float().log()).logsumexp(-1).log_softmax(-1).amax(1)


# Of queries float32 [Hkv, group, D]; what is best of a page, float32 [Hkv, pages].
PAGE_SCORES: dict[str, Callable[[torch.Tensor, Pages, float], torch.Tensor]] = {
    score.__name__: score for score in (spread, sub_pages)
}


def select_pages_cpu(
    q: torch.Tensor, sequence: PagedSequence, summaries: PageSummaries, config: DecodeConfig, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages to attend for one decode step, by ``config.score``.

    Args:
        q: ``[Hq, D]``, one row.
        sequence: the paged KV cache; the newest token is written.
        summaries: page summaries of the same layer.
        config: budget, sink and recent tokens.
        scale: softmax scale.

    Returns:
        int64 ``[Hkv, n]`` logical pages in ascending order, the partial last page always among them, and float32
        ``[Hkv]`` the share of the estimated softmax mass that lies on them.
    """
    summaries.refresh(sequence)
    blocks = sequence.table.numel()
    block = sequence.page
    grouped = q.view(sequence.kv_heads, -1, q.shape[-1]).float()
    table = sequence.table
    means = (summaries.mean[table].float(), summaries.spread[table], summaries.sub_mean[table].float())
    at = Pages(*means, summaries.sub_count[table])
    score = PAGE_SCORES[config.score](grouped, at, scale)
    forced = torch.zeros(blocks, dtype=torch.bool, device=q.device)
    forced[: -(-config.sink // block)] = True
    forced[max(0, sequence.length - config.recent) // block :] = True
    score.masked_fill_(forced[None, :], float("inf"))
    capacity = max(int(forced.sum()), min(blocks, config.budget // block))
    # Stable: of pages that score equally the earlier one is taken.
    best = score.sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
    pages = best.sort(dim=-1).values
    filled = torch.full((blocks,), block, device=q.device)
    filled[-1] = sequence.length - (blocks - 1) * block
    dots = torch.bmm(grouped, at.mean.permute(1, 2, 0))
    mass = (dots * scale + filled.float().log()).softmax(-1).mean(1)
    return pages, mass.gather(1, pages).sum(-1)


def sparse_paged_decode_cpu(
    q: torch.Tensor,
    sequence: PagedSequence,
    summaries: PageSummaries,
    config: DecodeConfig,
    scale: float,
    *,
    measured: bool = False,
) -> tuple[torch.Tensor, AttentionStats]:
    """Attention of one query row over the selected pages of each KV head.

    Args:
        q: ``[Hq, D]``, the newest token's query.
        sequence: the paged KV cache with the newest token written.
        summaries: page summaries of the same layer.
        config: budget; when every page fits it, the result equals dense attention.
        scale: softmax scale.
        measured: whether the row's coverage is measured against every key.

    Returns:
        Output ``[Hq, D]`` in q's dtype, and what was attended.

    Raises:
        ValueError: when heads do not divide.
    """
    heads, dim = q.shape
    group, block, kv_heads = sequence.group(heads), sequence.page, sequence.kv_heads
    pages, coverage = select_pages_cpu(q, sequence, summaries, config, scale)
    chosen = sequence.table[pages]
    head = torch.arange(kv_heads, device=q.device)[:, None]
    # The partial page is the newest, so it is always last: cutting the tail drops exactly the unwritten slots.
    length = pages.shape[1] * block - (sequence.table.numel() * block - sequence.length)
    keys = sequence.keys[chosen, :, head].reshape(1, kv_heads, -1, dim)[:, :, :length]
    values = sequence.values[chosen, :, head].reshape(1, kv_heads, -1, dim)[:, :, :length]
    out = torch.nn.functional.scaled_dot_product_attention(q.view(1, kv_heads, group, dim), keys, values, scale=scale)
    stats = AttentionStats(heads * length, heads * sequence.length, float(coverage.mean()), heads)
    if measured:
        every = sequence.gather()[0]
        attended = torch.zeros(kv_heads, 1, every.shape[1], dtype=torch.bool).scatter_(2, pages[:, None], True)
        share = measured_coverage(q[None], torch.tensor([sequence.length - 1]), every, attended, scale)
        stats = stats._replace(measured=share, measured_rows=1)
    return out.reshape(heads, dim), stats
