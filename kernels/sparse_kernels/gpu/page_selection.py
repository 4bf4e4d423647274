"""Which pages each new token of a batch attends, in Triton: pages are scored by their summaries, the best are kept.

Every shape is fixed by the batch and the capacity, so that a CUDA graph can replay it while sequences grow: how many
pages there are is read on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from sparse_kernels.config import DecodeConfig
from sparse_kernels.gpu.checks import padded_rows
from sparse_kernels.gpu.sparse_paged_decode import DecodeBatch, check_batch
from sparse_kernels.summaries import PageSummaries

# Columns of one tensor-core product: pages, or their sub-pages.
_COLUMNS = 64


def page_capacity(config: DecodeConfig, page: int) -> int:
    """Pages that a KV head attends at most: the budget's, or those of sink and recent tokens where these are more."""
    return max(config.budget // page, -(-config.sink // page) + -(-config.recent // page) + 1)


def page_counts(batch: DecodeBatch, config: DecodeConfig, dense: torch.Tensor | None = None) -> torch.Tensor:
    """How many pages each sequence attends, int32 ``[sequences]``: all of a short one, else the capacity.

    Args:
        batch: where the sequences lie.
        config: budget, and the length from which it holds.
        dense: bool ``[sequences]``, those that attend all their pages whatever their length.
    """
    page = batch.keys.shape[1]
    there = (batch.lengths + page - 1) // page
    whole = batch.lengths < config.sparse_from
    whole = whole if dense is None else whole | dense
    return torch.where(whole, there, there.clamp_max(page_capacity(config, page))).int()


def select_pages(
    q: torch.Tensor, batch: DecodeBatch, summaries: PageSummaries, config: DecodeConfig, scale: float
) -> torch.Tensor:
    """The best pages of each sequence and KV head by ``config.score``; those of sink and recent tokens come first.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: where the sequences lie.
        summaries: of the layer; not stale.
        config: score, budget, sink and recent tokens.
        scale: softmax scale.

    Returns:
        int32 ``[sequences, Hkv, capacity]``, logical pages, the best first; of a sequence with fewer, the first so many
        are valid.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_batch(q, batch)
    pages, page, kv_heads, dim = batch.keys.shape
    if summaries.mean.shape != (pages, kv_heads, dim) or summaries.page_size != page:
        raise ValueError(f"summaries: are of {tuple(summaries.mean.shape)}, the cache is of {(pages, kv_heads, dim)}")
    scores = PAGE_SCORES[config.score](q, batch, summaries, config, scale)
    # A sequence with fewer pages than the capacity has them all among the first ones.
    return scores.topk(min(page_capacity(config, page), scores.shape[2]), dim=-1).indices.int()


def spread(
    q: torch.Tensor, batch: DecodeBatch, summaries: PageSummaries, config: DecodeConfig, scale: float
) -> torch.Tensor:
    """``max over the group of (q . mean + 0.5 |q| spread)`` (UNIQUE, arXiv 2605.27740)."""
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    blocks, means, spreads = batch.tables.shape[1], summaries.mean, summaries.spread
    scores = torch.empty(sequences, kv_heads, blocks, dtype=torch.float32, device=q.device)
    score_pages[(sequences, kv_heads, triton.cdiv(blocks, _COLUMNS))](
        q, means, spreads, batch.tables, batch.lengths, scores,
        blocks, config.sink, config.recent, batch.tables.stride(0),
        *q.stride()[:2], *means.stride()[:2], *spreads.stride(),
        PAGE=page, DIM=dim, GROUP=heads // kv_heads, ROWS=padded_rows(heads // kv_heads), PAGES=_COLUMNS,
    )  # fmt: skip
    return scores


def sub_pages(
    q: torch.Tensor, batch: DecodeBatch, summaries: PageSummaries, config: DecodeConfig, scale: float
) -> torch.Tensor:
    """The largest share of softmax mass over the group, each sub-page's keys taken for its mean key."""
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    blocks, means, counts = batch.tables.shape[1], summaries.sub_mean, summaries.sub_count
    subs = means.shape[1]
    if _COLUMNS % subs:
        raise ValueError(f"summaries: {subs} sub-pages a page do not divide {_COLUMNS}")
    masses = torch.empty(sequences, heads, blocks, dtype=torch.float32, device=q.device)
    score_sub_pages[(sequences, kv_heads, triton.cdiv(blocks * subs, _COLUMNS))](
        q, means, counts, batch.tables, batch.lengths, masses,
        scale, blocks, batch.tables.stride(0), *q.stride()[:2], *means.stride()[:3],
        PAGE=page, DIM=dim, GROUP=heads // kv_heads, ROWS=padded_rows(heads // kv_heads), SUBS=subs, COLUMNS=_COLUMNS,
    )  # fmt: skip
    shares = masses.softmax(-1).view(sequences, kv_heads, -1, blocks).amax(2)
    number, lengths = torch.arange(blocks, device=q.device), batch.lengths[:, None]
    first = (lengths - config.recent).clamp_min(0) // page
    always = ((number * page < config.sink) | (number >= first)) & (number * page < lengths)
    # What is not there comes last.
    shares = torch.where((number * page < lengths)[:, None], shares, -1.0)
    return torch.where(always[:, None], float("inf"), shares)


PageScore = Callable[[torch.Tensor, DecodeBatch, PageSummaries, DecodeConfig, float], torch.Tensor]
# What is best of a page, float32 [sequences, Hkv, pages]; infinite where a page is always kept.
PAGE_SCORES: dict[str, PageScore] = {score.__name__: score for score in (spread, sub_pages)}


@triton.jit  # type: ignore[untyped-decorator]
def score_pages(  # type: ignore[no-untyped-def]
    q, means, spreads, tables, lengths, scores,
    blocks, sink, recent, s_table,
    s_qs, s_qh, s_mp, s_mh, s_sp, s_sh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, PAGES: tl.constexpr,
):  # fmt: skip
    """Scores of some pages of one sequence and KV head; those that are always kept score infinitely."""
    i_s = tl.program_id(0).to(tl.int64)
    i_kv = tl.program_id(1)
    o_b = tl.program_id(2) * PAGES + tl.arange(0, PAGES)
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    length = tl.load(lengths + i_s)
    there = (length + PAGE - 1) // PAGE
    m_b = o_b < there
    # [ROWS, DIM]
    p_q = q + i_s * s_qs + (i_kv * GROUP + o_r)[:, None] * s_qh + o_d[None, :]
    b_q = tl.load(p_q, mask=(o_r < GROUP)[:, None], other=0.0).to(tl.float32)
    page = tl.load(tables + i_s * s_table + o_b, mask=m_b, other=0).to(tl.int64)
    p_mean = means + (page * s_mp + i_kv * s_mh)[:, None] + o_d[None, :]
    b_mean = tl.load(p_mean, mask=m_b[:, None], other=0.0).to(tl.float32)
    b_spread = tl.load(spreads + page * s_sp + i_kv * s_sh, mask=m_b, other=0.0)
    b_norm = tl.sqrt(tl.sum(b_q * b_q, 1))
    # In float32 throughout: pages that nearly tie must not change places with the precision.
    b_s = tl.dot(b_q, tl.trans(b_mean), input_precision="ieee") + 0.5 * b_norm[:, None] * b_spread[None, :]
    b_s = tl.max(tl.where((o_r < GROUP)[:, None], b_s, float("-inf")), 0)
    first = tl.maximum(length - recent, 0) // PAGE
    b_s = tl.where((o_b * PAGE < sink) | (o_b >= first), float("inf"), b_s)
    p_score = scores + (i_s * tl.num_programs(1) + i_kv) * blocks + o_b
    tl.store(p_score, tl.where(m_b, b_s, float("-inf")), mask=o_b < blocks)


@triton.jit  # type: ignore[untyped-decorator]
def score_sub_pages(  # type: ignore[no-untyped-def]
    q, sub_means, sub_counts, tables, lengths, masses,
    scale, blocks, s_table, s_qs, s_qh, s_mp, s_mt, s_mh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, SUBS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Logarithm of what some pages of one sequence and KV head weigh for each of its query heads."""
    i_s = tl.program_id(0).to(tl.int64)
    i_kv = tl.program_id(1)
    NEW: tl.constexpr = COLUMNS // SUBS
    o_c = tl.arange(0, COLUMNS)
    o_n = tl.program_id(2) * NEW + tl.arange(0, NEW)
    o_b = tl.program_id(2) * NEW + o_c // SUBS
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    m_r = o_r < GROUP
    m_c = o_b * PAGE < tl.load(lengths + i_s)
    # [ROWS, DIM]
    p_q = q + i_s * s_qs + (i_kv * GROUP + o_r)[:, None] * s_qh + o_d[None, :]
    b_q = tl.load(p_q, mask=m_r[:, None], other=0.0).to(tl.float32)
    page = tl.load(tables + i_s * s_table + o_b, mask=m_c, other=0).to(tl.int64)
    p_mean = sub_means + (page * s_mp + (o_c % SUBS) * s_mt + i_kv * s_mh)[:, None] + o_d[None, :]
    b_mean = tl.load(p_mean, mask=m_c[:, None], other=0.0).to(tl.float32)
    b_count = tl.load(sub_counts + page * SUBS + o_c % SUBS, mask=m_c, other=0).to(tl.float32)
    # In float32 throughout: pages that nearly tie must not change places with the precision.
    b_s = tl.dot(b_q, tl.trans(b_mean), input_precision="ieee") * (scale * 1.4426950408889634)
    b_s = tl.where((b_count > 0)[None, :], b_s + tl.log2(tl.maximum(b_count, 1.0))[None, :], float("-inf"))
    b_s = tl.reshape(b_s, (ROWS, NEW, SUBS))
    b_m = tl.max(b_s, 2)
    b_safe = tl.where(b_m == float("-inf"), 0.0, b_m)
    b_l = tl.sum(tl.exp2(b_s - b_safe[:, :, None]), 2)
    b_mass = tl.where(b_l > 0, (b_safe + tl.log2(tl.maximum(b_l, 1e-30))) * 0.6931471805599453, float("-inf"))
    p_mass = masses + ((i_s * tl.num_programs(1) + i_kv) * GROUP + o_r).to(tl.int64)[:, None] * blocks + o_n[None, :]
    tl.store(p_mass, b_mass, mask=m_r[:, None] & (o_n < blocks)[None, :])
