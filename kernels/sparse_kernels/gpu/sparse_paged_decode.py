"""Sparse paged decode over a batch, in Triton: chosen pages are attended in splits, and the splits merged.

Every shape is fixed by the batch and the capacity, so that a CUDA graph can replay it while sequences grow: how many
pages there are is read on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_cache, padded_rows

# As many as fill an H100 twice; more splits than the merge can hold in one tile are none the faster.
_PROGRAMS, _MOST_SPLITS = 264, 64


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


def sparse_paged_decode(
    q: torch.Tensor, batch: DecodeBatch, pages: torch.Tensor, scale: float, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of each sequence's new token over chosen pages of each KV head.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: keys and values.
        pages: int32 ``[sequences, Hkv, capacity]``, logical pages, no page twice; of a sequence with fewer pages than
            the capacity, the first so many count.
        scale: softmax scale.
        counts: int32 ``[sequences]``, pages that each attends: all it has, whatever ``pages`` says, or the first of
            ``pages``. None takes the capacity, or all where there are fewer.

    Returns:
        ``[sequences, Hq, D]`` in the dtype of the queries.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    check_batch(q, batch)
    if pages.shape[:2] != (sequences, kv_heads) or pages.dtype != torch.int32:
        raise ValueError(f"pages: {tuple(pages.shape)} of {pages.dtype}, not int32 {(sequences, kv_heads, 'capacity')}")
    group, capacity = heads // kv_heads, pages.shape[2]
    if counts is None:
        counts = ((batch.lengths + page - 1) // page).clamp_max(capacity).int()
    if counts.shape != (sequences,) or counts.dtype != torch.int32:
        raise ValueError(f"counts: {tuple(counts.shape)} of {counts.dtype}, not int32 {(sequences,)}")
    # From shapes only, which a CUDA graph fixes.
    splits = min(triton.cdiv(_PROGRAMS, max(1, sequences * kv_heads)), batch.tables.shape[1], _MOST_SPLITS)
    parts = torch.empty(sequences, heads, splits, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(sequences, heads, splits, dtype=torch.float32, device=q.device)
    attend_pages[(sequences, kv_heads, splits)](
        q, batch.keys, batch.values, pages.contiguous(), counts, batch.tables, batch.lengths, parts, lse,
        scale, capacity, splits, batch.tables.stride(0),
        *q.stride()[:2], *batch.keys.stride()[:3],
        PAGE=page, DIM=dim, GROUP=group, ROWS=padded_rows(group),
    )  # fmt: skip
    out = torch.empty_like(q)
    merge_splits[(sequences, heads)](
        parts, lse, out, splits, *out.stride()[:2], DIM=dim, SPLITS=triton.next_power_of_2(splits)
    )
    return out


def check_batch(q: torch.Tensor, batch: DecodeBatch) -> None:
    """Checks queries ``[sequences, Hq, D]`` against a batch.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_cache(q, batch.keys, batch.values)
    sequences = q.shape[0]
    if batch.tables.shape[0] != sequences or batch.lengths.shape != (sequences,):
        raise ValueError(f"batch: tables and lengths are not those of {sequences} sequences")


@triton.jit  # type: ignore[untyped-decorator]
def attend_pages(  # type: ignore[no-untyped-def]
    q, k, v, pages, counts, tables, lengths, parts, lse,
    scale, capacity, splits, s_table,
    s_qs, s_qh, s_kp, s_kt, s_kh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
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
    count = tl.load(counts + i_s)
    whole = count == (length + PAGE - 1) // PAGE
    each = (count + splits - 1) // splits
    b_q = tl.load(q + i_s * s_qs + o_h[:, None] * s_qh + o_d[None, :], mask=m_r[:, None], other=0.0)
    b_m = tl.full([ROWS], float("-inf"), tl.float32)
    b_l = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, DIM], tl.float32)
    p_pages = pages + (i_s * tl.num_programs(1) + i_kv) * capacity
    for i in range(i_p * each, tl.minimum((i_p + 1) * each, count)):
        i_b = i
        if not whole:
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
