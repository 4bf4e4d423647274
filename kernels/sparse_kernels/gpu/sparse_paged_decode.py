"""Sparse paged decode over a batch, in Triton: pages are scored, chosen, and attended in splits that are merged.

Three launches, or two where every page is attended. Grids and buffers are fixed by the batch and the capacity, so that
a CUDA graph can replay them while sequences grow: how many pages there are is read on the device.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sparse_kernels.config import DecodeConfig
from sparse_kernels.gpu.checks import padded_rows
from sparse_kernels.gpu.decode_batch import (
    DecodeBatch,
    DecodeWorkspace,
    check_batch,
    dependent_launch,
    most_splits,
)
from sparse_kernels.gpu.page_scores import check_summaries
from sparse_kernels.gpu.page_selection import page_capacity, select_pages
from sparse_kernels.summaries import PageSummaries

# Programs that share the chosen pages of a step; and those that fill the device twice where all pages are attended.
_CHOSEN_PROGRAMS, _PROGRAMS, _MOST_SPLITS = 512, 264, 64
# Keys of one tensor-core product, and bytes of its tile; a split has at least two tiles.
_KEYS, _TILE_BYTES, _LEAST = 64, 16384, 2
# Numbers of the parts that a merging program holds at once.
_MERGED = 8192
_ALWAYS = 2**31 - 1


def sparse_paged_decode(
    q: torch.Tensor,
    batch: DecodeBatch,
    summaries: PageSummaries,
    config: DecodeConfig,
    scale: float,
    *,
    dense: torch.Tensor | None = None,
    summarized: bool = False,
    workspace: DecodeWorkspace | None = None,
) -> torch.Tensor:
    """Attention of each sequence's new token over the best pages of each KV head.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: keys and values.
        summaries: of the layer; the newest page's are brought up to date.
        config: score and budget, and the length from which they hold.
        scale: softmax scale.
        dense: bool ``[sequences]``, those that attend all their pages whatever their length.
        summarized: whether the newest pages' summaries are left as they stand, as where several tokens are new and
            :func:`sparse_kernels.gpu.page_summaries.summarize_pages` was told of them.
        workspace: buffers; None makes some.

    Returns:
        ``[sequences, Hq, D]`` in the dtype of the queries.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    capacity = page_capacity(config, batch.keys.shape[1])
    check_batch(q, batch, dense)
    check_summaries(q, batch, summaries)
    workspace = workspace or DecodeWorkspace.of(q, batch, capacity)
    chosen = select_pages(
        q, batch, summaries, config, scale, dense=dense, summarized=summarized, workspace=workspace
    )  # fmt: skip
    out = torch.empty_like(q)
    held = workspace.nobody if dense is None else dense.view(torch.uint8)
    pairs = q.shape[0] * batch.keys.shape[2]
    tile = _tile(q, batch)
    tiles = -(-capacity * batch.keys.shape[1] // tile)
    least = max(_LEAST, -(-tiles // max(2, min(32, _CHOSEN_PROGRAMS // pairs))))
    _attend(
        q, batch, chosen, held, workspace, out, scale, config.sparse_from, capacity, most_splits(pairs), least,
        merge=True, **dependent_launch(q.device),
    )  # fmt: skip
    return out


def paged_decode(
    q: torch.Tensor, batch: DecodeBatch, scale: float, *, workspace: DecodeWorkspace | None = None
) -> torch.Tensor:
    """Attention of each sequence's new token over all its pages; arguments as in :func:`sparse_paged_decode`.

    Its splits are so many that a launch of their own merges them.
    """
    check_batch(q, batch)
    workspace = workspace or DecodeWorkspace.of(q, batch)
    workspace.check(q, batch)
    out, (sequences, heads, dim), kv_heads = torch.empty_like(q), q.shape, batch.keys.shape[2]
    pairs = sequences * kv_heads
    splits = min(_MOST_SPLITS, max(most_splits(pairs), -(-_PROGRAMS // pairs)))
    args = (q, batch, batch.tables, workspace.nobody, workspace, out, scale, _ALWAYS, 0, splits, _LEAST)
    _attend(*args, merge=False, PDL=False)
    group = heads // kv_heads
    merge_splits[(kv_heads, sequences, group)](
        workspace.parts, workspace.lse, batch.lengths, out, splits, _LEAST, *out.stride()[:2],
        DIM=dim, GROUP=group, HEADS=kv_heads, TILE=_tile(q, batch), SPLITS=triton.next_power_of_2(splits),
        **dependent_launch(q.device),
    )  # fmt: skip
    return out


def _tile(q: torch.Tensor, batch: DecodeBatch) -> int:
    """Keys that a program multiplies at once."""
    return min(_KEYS, max(16, _TILE_BYTES // (q.shape[2] * q.element_size())))


def _attend(
    q: torch.Tensor,
    batch: DecodeBatch,
    chosen: torch.Tensor,
    dense: torch.Tensor,
    workspace: DecodeWorkspace,
    out: torch.Tensor,
    scale: float,
    sparse_from: int,
    capacity: int,
    splits: int,
    least: int,
    *,
    merge: bool,
    PDL: bool,
    **options: bool,
) -> None:
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    rows, group = padded_rows(heads // kv_heads), heads // kv_heads
    groups = triton.next_power_of_2(group)
    # Splits that every sequence has come first: programs without work end at once.
    attend_pages[(kv_heads, sequences, splits)](
        q, batch.keys, batch.values, batch.tables, batch.lengths, dense, chosen,
        workspace.parts, workspace.lse, workspace.counters, out,
        scale * math.log2(math.e), sparse_from, capacity, splits, least, batch.tables.stride(0),
        *q.stride()[:2], *batch.keys.stride()[:3], *out.stride()[:2],
        PAGE=page, DIM=dim, GROUP=group, GROUPS=groups, ROWS=rows, HEADS=kv_heads, TILE=_tile(q, batch),
        MERGED=max(1, min(triton.next_power_of_2(splits), _MERGED // (groups * dim))) if merge else 0,
        STAGES=3, PDL=PDL, num_warps=4 if rows * dim <= 2048 else 8, **options,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def attend_pages(  # type: ignore[no-untyped-def]
    q, k, v, tables, lengths, dense, chosen, parts, lse, counters, out,
    scale, sparse_from, capacity, splits, least, s_table,
    s_qs, s_qh, s_kp, s_kt, s_kh, s_os, s_oh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, TILE: tl.constexpr, MERGED: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The query heads of one KV head over one split of its pages; where MERGED, the last split's program merges.

    ``scale`` is that of powers of two.
    """
    i_kv = tl.program_id(0)
    i_s = tl.program_id(1).to(tl.int64)
    i_p = tl.program_id(2)
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    m_r = o_r < GROUP
    o_h = i_kv * GROUP + o_r
    length = tl.load(lengths + i_s)
    there = (length + PAGE - 1) // PAGE
    whole = (length < sparse_from) | (tl.load(dense + i_s) != 0) | (there <= capacity)
    count = tl.where(whole, there, capacity)
    # Pages in the order of the sequence end with the newest, the only one that may not be full.
    tokens = length - (there - count) * PAGE
    tiles, each, active = _shares(tokens, splits, least, TILE)
    begin = i_p * each
    end = tl.minimum(begin + each, tiles)
    if begin < end:
        # Written before the pages were scored: no need to wait for the choice.
        p_q = q + i_s * s_qs + o_h[:, None] * s_qh + o_d[None, :]
        b_q = tl.load(p_q, mask=m_r[:, None], other=0.0)
        if PDL:
            tl.extra.cuda.gdc_wait()
        p_pages = chosen + (i_s * HEADS + i_kv) * capacity
        if whole:
            p_pages = tables + i_s * s_table
        b_m = tl.full([ROWS], -1e30, tl.float32)
        b_l = tl.zeros([ROWS], tl.float32)
        b_acc = tl.zeros([ROWS, DIM], tl.float32)
        o_n = tl.arange(0, TILE)
        for i in tl.range(begin, end, num_stages=STAGES):
            if PAGE >= TILE:
                PER: tl.constexpr = PAGE // TILE
                page = tl.load(p_pages + i // PER).to(tl.int64)
                at = page * s_kp + i_kv * s_kh + ((i % PER * TILE + o_n) * s_kt)[:, None] + o_d[None, :]
            else:
                pages = tl.load(p_pages + tl.minimum((i * TILE + o_n) // PAGE, count - 1)).to(tl.int64)
                at = (pages * s_kp + i_kv * s_kh + o_n % PAGE * s_kt)[:, None] + o_d[None, :]
            # Slots past the end may hold anything, NaN included.
            m_n = i * TILE + o_n < tokens
            b_k = tl.load(k + at, mask=m_n[:, None], other=0.0)
            b_v = tl.load(v + at, mask=m_n[:, None], other=0.0)
            b_s = tl.where(m_n[None, :], tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale, float("-inf"))
            b_new = tl.maximum(b_m, tl.max(b_s, 1))
            b_p = tl.exp2(b_s - b_new[:, None])
            b_old = tl.exp2(b_m - b_new)
            b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
            b_l = b_l * b_old + tl.sum(b_p, 1)
            b_m = b_new
        b_o = b_acc / b_l[:, None]
        if active == 1:
            p_out = out + i_s * s_os + o_h[:, None] * s_oh + o_d[None, :]
            tl.store(p_out, b_o.to(out.dtype.element_ty), mask=m_r[:, None])
        else:
            row = (i_s * HEADS + i_kv) * splits
            o_part = (row + i_p) * GROUP + o_r
            tl.store(parts + o_part[:, None] * DIM + o_d[None, :], b_o, mask=m_r[:, None])
            tl.store(lse + o_part, b_m + tl.log2(b_l), mask=m_r)
            if MERGED > 0:
                tl.debug_barrier()
                counter = counters + i_s * HEADS + i_kv
                if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
                    p_group = out + i_s * s_os + i_kv * GROUP * s_oh
                    _merge(parts, lse, p_group, row, active, s_oh, DIM, GROUP, GROUPS, MERGED)
                    tl.store(counter, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _shares(tokens, splits, least, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tiles that there are, tiles of a split, and splits that have any."""
    tiles = (tokens + TILE - 1) // TILE
    each = tl.maximum((tiles + splits - 1) // splits, least)
    return tiles, each, (tiles + each - 1) // each


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    parts, lse, p_out, row, active, s_oh,
    DIM: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """The heads of a group by their splits' weights (Flash-Decoding); other programs have just written them."""
    o_p = tl.arange(0, MERGED)
    o_g = tl.arange(0, GROUPS)
    o_d = tl.arange(0, DIM)
    m_g = o_g < GROUP
    a_m = tl.full([GROUPS], -1e30, tl.float32)
    a_l = tl.zeros([GROUPS], tl.float32)
    a_o = tl.zeros([GROUPS, DIM], tl.float32)
    for i in tl.range(0, active, MERGED, num_stages=1):
        at = (row + i + o_p)[:, None] * GROUP + o_g[None, :]
        m_p = (i + o_p < active)[:, None] & m_g[None, :]
        b_w = tl.load(lse + at, mask=m_p, other=float("-inf"), cache_modifier=".cg")
        p_part = parts + at[:, :, None] * DIM + o_d[None, None, :]
        b_part = tl.load(p_part, mask=m_p[:, :, None], other=0.0, cache_modifier=".cg")
        b_m = tl.maximum(a_m, tl.max(b_w, 0))
        b_w = tl.exp2(b_w - b_m[None, :])
        b_old = tl.exp2(a_m - b_m)
        a_l = a_l * b_old + tl.sum(b_w, 0)
        a_o = a_o * b_old[:, None] + tl.sum(b_part * b_w[:, :, None], 0)
        a_m = b_m
    a_o = a_o / tl.where(m_g, a_l, 1.0)[:, None]
    tl.store(p_out + o_g[:, None] * s_oh + o_d[None, :], a_o.to(p_out.dtype.element_ty), mask=m_g[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def merge_splits(  # type: ignore[no-untyped-def]
    parts, lse, lengths, out, splits, least, s_os, s_oh,
    DIM: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One query head's splits by their weights (Flash-Decoding), where all pages were attended."""
    i_kv = tl.program_id(0)
    i_s = tl.program_id(1).to(tl.int64)
    i_g = tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_wait()
    _, _, active = _shares(tl.load(lengths + i_s), splits, least, TILE)
    # A single split was written where it belongs.
    if active > 1:
        o_p = tl.arange(0, SPLITS)
        o_d = tl.arange(0, DIM)
        m_p = o_p < active
        at = ((i_s * HEADS + i_kv) * splits + o_p) * GROUP + i_g
        b_w = tl.load(lse + at, mask=m_p, other=float("-inf"))
        b_w = tl.exp2(b_w - tl.max(b_w, 0))
        b_part = tl.load(parts + at[:, None] * DIM + o_d[None, :], mask=m_p[:, None], other=0.0)
        b_out = tl.sum(b_part * b_w[:, None], 0) / tl.sum(b_w, 0)
        p_out = out + i_s * s_os + (i_kv * GROUP + i_g) * s_oh + o_d
        tl.store(p_out, b_out.to(out.dtype.element_ty))
