"""How the pages of a decode step are shared among programs, attended by each, and merged, in Triton.

Splits are about as large for all sequences, whatever their lengths, so that one long sequence among short ones does not
keep a few programs busy while the others rest. Every program computes the shares itself, from the lengths.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparse_kernels.gpu.page_limits import own_limits


@triton.jit  # type: ignore[untyped-decorator]
def attended_tokens(length, dense, sparse_from, capacity, PAGE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pages that a sequence attends, and the tokens on them: all, or those of its chosen pages."""
    there = (length + PAGE - 1) // PAGE
    whole = (length < sparse_from) | (dense != 0) | (there <= capacity)
    count = tl.where(whole, there, capacity)
    # Pages in the order of the sequence end with the newest, the only one that may not be full.
    return count, length - (there - count) * PAGE


@triton.jit  # type: ignore[untyped-decorator]
def share_splits(  # type: ignore[no-untyped-def]
    lengths, dense, kinds, limits, sparse_from, capacity, sequences, splits,
    PAGE: tl.constexpr, TILE: tl.constexpr, SEQUENCES: tl.constexpr, LEAST: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Tiles of each sequence, and splits: so many that all are about as large, whatever the lengths."""
    o_s = tl.arange(0, SEQUENCES)
    length = tl.load(lengths + o_s, mask=o_s < sequences, other=0)
    held = tl.load(dense + o_s, mask=o_s < sequences, other=0)
    if EACH:
        sparse_from, capacity = own_limits(kinds, limits, o_s, o_s < sequences)
    _, tokens = attended_tokens(length, held, sparse_from, capacity, PAGE)
    tiles = (tokens + TILE - 1) // TILE
    each = tl.maximum((tl.sum(tiles, 0) + splits - 1) // splits, LEAST)
    return tiles, (tiles + each - 1) // each


@triton.jit
def share(tiles, split, active):  # type: ignore[no-untyped-def]
    """Where a split's tiles begin and end."""
    return (split * tiles + active - 1) // active, ((split + 1) * tiles + active - 1) // active


@triton.jit  # type: ignore[untyped-decorator]
def attend_tiles(  # type: ignore[no-untyped-def]
    b_q, b_m, b_l, b_acc, p_k, p_v, p_pages, begin, end, opening, ahead, further, count, tokens, scale, s_kp, s_kt,
    PAGE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of listed pages: the first ``opening``, and after these such as stand so many places further.

    Args:
        ahead: places in what is attended from the tile's number on, past the opening.
        further: places in ``p_pages`` from those, past the opening.
        count: pages that are attended.
    """
    o_n = tl.arange(0, TILE)
    o_d = tl.arange(0, DIM)
    for i in tl.range(begin, end, num_stages=STAGES):
        if PAGE >= TILE:
            PER: tl.constexpr = PAGE // TILE
            place = i // PER
            jump = place >= opening
            place += tl.where(jump, ahead, 0)
            page = tl.load(p_pages + place + tl.where(jump, further, 0)).to(tl.int64)
            inner = i % PER * TILE + o_n
            # Places in a page are of 32 bits: fewer registers.
            at = (inner * s_kt)[:, None] + o_d[None, :]
            # Slots past the end may hold anything, NaN included.
            m_n = place * PAGE + inner < tokens
        else:
            pages = tl.load(p_pages + tl.minimum((i * TILE + o_n) // PAGE, count - 1)).to(tl.int64)
            page = 0
            at = (pages * s_kp + o_n % PAGE * s_kt)[:, None] + o_d[None, :]
            m_n = i * TILE + o_n < tokens
        b_k = tl.load(p_k + page * s_kp + at, mask=m_n[:, None], other=0.0)
        b_v = tl.load(p_v + page * s_kp + at, mask=m_n[:, None], other=0.0)
        b_s = tl.where(m_n[None, :], tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale, float("-inf"))
        b_new = tl.maximum(b_m, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_old = tl.exp2(b_m - b_new)
        b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_l = b_l * b_old + tl.sum(b_p, 1)
        b_m = b_new
    return b_m, b_l, b_acc


@triton.jit  # type: ignore[untyped-decorator]
def merge_group(  # type: ignore[no-untyped-def]
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
        at = (row + i + o_p).to(tl.int64)[:, None] * GROUP + o_g[None, :]
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


@triton.jit(do_not_specialize=("sequences", "splits"))  # type: ignore[untyped-decorator]
def merge_splits(  # type: ignore[no-untyped-def]
    dense, lengths, parts, lse, out, sequences, splits, s_os, s_oh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, SEQUENCES: tl.constexpr, TILE: tl.constexpr,
    LEAST: tl.constexpr, MERGED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One query head's splits, where all pages were attended."""
    i_kv = tl.program_id(0)
    i_s = tl.program_id(1)
    i_g = tl.program_id(2)
    o_s = tl.arange(0, SEQUENCES)
    if PDL:
        tl.extra.cuda.gdc_wait()
    _, active = share_splits(
        lengths, dense, dense, dense, 2147483647, 0, sequences, splits, PAGE, TILE, SEQUENCES, LEAST, False
    )  # fmt: skip
    row = i_kv * (splits + sequences) + tl.sum(tl.where(o_s < i_s, active, 0), 0)
    active = tl.sum(tl.where(o_s == i_s, active, 0), 0)
    # A single split was written where it belongs.
    if active > 1:
        p_out = out + i_s.to(tl.int64) * s_os + (i_kv * GROUP + i_g) * s_oh
        merge_group(parts + i_g * DIM, lse + i_g, p_out, row, active, s_oh, DIM, GROUP, 1, MERGED)
