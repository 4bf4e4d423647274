"""Sparse paged decode over a batch, in Triton: score pages, keep the best, attend them in splits, merge the splits.

Every shape is fixed by the batch and the capacity, so that a CUDA graph can replay it while sequences grow: how many
pages there are is read on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_kernels.config import DecodeConfig
from sparse_kernels.gpu.checks import check_cache

# The least rows of a tensor-core product: a group of query heads is padded to it.
_LEAST_ROWS = 16
_PAGES_A_PROGRAM = 64
_PAGES_A_SPLIT = 4


class DecodeBatch(NamedTuple):
    """One new token of each of several sequences; its key and value are written.

    Attributes:
        keys: ``[pages, page, Hkv, D]``, the layer's whole key cache.
        values: same shape.
        tables: int32 ``[sequences, blocks]``, physical page of each logical block; past a sequence's end any page.
        lengths: int32 ``[sequences]``, valid tokens, the new one included.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor


def page_capacity(config: DecodeConfig, page: int) -> int:
    """Pages that a KV head attends at most: the budget's, or those of sink and recent tokens where these are more."""
    return max(config.budget // page, -(-config.sink // page) + -(-config.recent // page) + 1)


def select_pages(
    q: torch.Tensor, batch: DecodeBatch, means: torch.Tensor, spreads: torch.Tensor, config: DecodeConfig
) -> torch.Tensor:
    """The best pages of each sequence and KV head, by ``max over the group of (q . mean + 0.5 |q| spread)``.

    Pages of sink and recent tokens come first (UNIQUE, arXiv 2605.27740).

    Args:
        q: ``[sequences, Hq, D]``.
        batch: where the sequences lie.
        means: mean key of each physical page, ``[pages, Hkv, D]``.
        spreads: float32 ``[pages, Hkv]``, as :class:`sparse_kernels.PageSummaries` keeps them.
        config: budget, sink and recent tokens.

    Returns:
        int32 ``[sequences, Hkv, capacity]``, logical pages; of a sequence with fewer, the first so many are valid.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    _check(q, batch)
    if config.score != "spread":
        raise ValueError(f"score: pages are scored by spread here, not by {config.score}")
    if means.shape[1:] != (kv_heads, dim) or means.stride(2) != 1 or spreads.shape != means.shape[:2]:
        raise ValueError(f"means, spreads: {tuple(means.shape)} and {tuple(spreads.shape)} are no page summaries")
    blocks = batch.tables.shape[1]
    scores = torch.empty(sequences, kv_heads, blocks, dtype=torch.float32, device=q.device)
    score_pages[(sequences, kv_heads, triton.cdiv(blocks, _PAGES_A_PROGRAM))](
        q, means, spreads, batch.tables, batch.lengths, scores,
        blocks, config.sink, config.recent, batch.tables.stride(0),
        *q.stride()[:2], *means.stride()[:2], *spreads.stride(),
        PAGE=page, DIM=dim, GROUP=heads // kv_heads, ROWS=_rows(heads // kv_heads), PAGES=_PAGES_A_PROGRAM,
    )  # fmt: skip
    # A sequence with fewer pages than the capacity has them all among the first ones.
    capacity = min(page_capacity(config, page), blocks)
    return scores.topk(capacity, dim=-1).indices.int()


def sparse_paged_decode(q: torch.Tensor, batch: DecodeBatch, pages: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of each sequence's new token over chosen pages of each KV head.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: keys and values.
        pages: int32 ``[sequences, Hkv, capacity]``, logical pages, no page twice; of a sequence with fewer pages than
            the capacity, the first so many count.
        scale: softmax scale.

    Returns:
        ``[sequences, Hq, D]`` in the dtype of the queries.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    _check(q, batch)
    if pages.shape[:2] != (sequences, kv_heads) or pages.dtype != torch.int32:
        raise ValueError(f"pages: {tuple(pages.shape)} of {pages.dtype}, not int32 {(sequences, kv_heads, 'capacity')}")
    group, capacity = heads // kv_heads, pages.shape[2]
    splits = triton.cdiv(capacity, _PAGES_A_SPLIT)
    parts = torch.empty(sequences, heads, splits, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(sequences, heads, splits, dtype=torch.float32, device=q.device)
    attend_pages[(sequences, kv_heads, splits)](
        q, batch.keys, batch.values, pages.contiguous(), batch.tables, batch.lengths, parts, lse,
        scale, capacity, splits, batch.tables.stride(0),
        *q.stride()[:2], *batch.keys.stride()[:3],
        PAGE=page, DIM=dim, GROUP=group, ROWS=_rows(group), PAGES=_PAGES_A_SPLIT,
    )  # fmt: skip
    out = torch.empty_like(q)
    merge_splits[(sequences, heads)](
        parts, lse, out, splits, *out.stride()[:2], DIM=dim, SPLITS=triton.next_power_of_2(splits)
    )
    return out


def _rows(group: int) -> int:
    return max(_LEAST_ROWS, int(triton.next_power_of_2(group)))


def _check(q: torch.Tensor, batch: DecodeBatch) -> None:
    check_cache(q, batch.keys, batch.values)
    sequences = q.shape[0]
    if batch.tables.shape[0] != sequences or batch.lengths.shape != (sequences,):
        raise ValueError(f"batch: tables and lengths are not those of {sequences} sequences")


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
def attend_pages(  # type: ignore[no-untyped-def]
    q, k, v, pages, tables, lengths, parts, lse,
    scale, capacity, splits, s_table,
    s_qs, s_qh, s_kp, s_kt, s_kh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, PAGES: tl.constexpr,
):  # fmt: skip
    """The query heads of one KV head over one split of its pages."""
    i_s = tl.program_id(0).to(tl.int64)
    i_kv = tl.program_id(1)
    i_p = tl.program_id(2)
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    o_n = tl.arange(0, PAGE)
    m_r = o_r < GROUP
    o_h = i_kv * GROUP + o_r
    length = tl.load(lengths + i_s)
    count = tl.minimum((length + PAGE - 1) // PAGE, capacity)
    b_q = tl.load(q + i_s * s_qs + o_h[:, None] * s_qh + o_d[None, :], mask=m_r[:, None], other=0.0)
    b_m = tl.full([ROWS], float("-inf"), tl.float32)
    b_l = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, DIM], tl.float32)
    p_pages = pages + (i_s * tl.num_programs(1) + i_kv) * capacity
    for i in range(i_p * PAGES, tl.minimum((i_p + 1) * PAGES, count)):
        i_b = tl.load(p_pages + i)
        at = tl.load(tables + i_s * s_table + i_b).to(tl.int64) * s_kp + i_kv * s_kh
        # Slots past the end may hold anything, NaN included.
        m_n = i_b * PAGE + o_n < length
        o_in = o_n[:, None] * s_kt + o_d[None, :]
        b_k = tl.load(k + at + o_in, mask=m_n[:, None], other=0.0)
        b_v = tl.load(v + at + o_in, mask=m_n[:, None], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k)) * (scale * 1.4426950408889634)
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        # A page that is attended holds a key.
        b_new = tl.maximum(b_m, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_old = tl.exp2(b_m - b_new)
        b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v)
        b_l = b_l * b_old + tl.sum(b_p, 1)
        b_m = b_new
    # A split without pages weighs nothing.
    none = b_l == 0
    b_l = tl.where(none, 1.0, b_l)
    o_part = ((i_s * tl.num_programs(1) * GROUP + o_h) * splits + i_p).to(tl.int64)
    tl.store(parts + o_part[:, None] * DIM + o_d[None, :], b_acc / b_l[:, None], mask=m_r[:, None])
    tl.store(lse + o_part, tl.where(none, float("-inf"), b_m + tl.log2(b_l)), mask=m_r)


@triton.jit  # type: ignore[untyped-decorator]
def merge_splits(parts, lse, out, splits, s_os, s_oh, DIM: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One query head's splits by their weights (Flash-Decoding)."""
    i_s = tl.program_id(0).to(tl.int64)
    i_h = tl.program_id(1)
    o_p = tl.arange(0, SPLITS)
    o_d = tl.arange(0, DIM)
    m_p = o_p < splits
    at = (i_s * tl.num_programs(1) + i_h) * splits
    b_lse = tl.load(lse + at + o_p, mask=m_p, other=float("-inf"))
    b_w = tl.exp2(b_lse - tl.max(b_lse, 0))
    b_part = tl.load(parts + (at + o_p)[:, None] * DIM + o_d[None, :], mask=m_p[:, None], other=0.0)
    b_out = tl.sum(b_part * b_w[:, None], 0) / tl.sum(b_w, 0)
    tl.store(out + i_s * s_os + i_h * s_oh + o_d, b_out.to(out.dtype.element_ty))
