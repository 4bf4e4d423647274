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
from sparse_kernels.gpu.checks import looked_at, padded_rows
from sparse_kernels.gpu.decode_batch import (
    DecodeBatch,
    DecodeWorkspace,
    await_told,
    check_batch,
    chosen_splits,
    dependent_launch,
    whole_splits,
)
from sparse_kernels.gpu.decode_splits import (
    attend_tiles,
    attended_tokens,
    merge_group,
    merge_splits,
    share,
    share_splits,
)
from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.gpu.page_limits import PageLimits, own_ends, own_limits, page_capacity
from sparse_kernels.gpu.page_selection import check_choice, launch_choice
from sparse_kernels.layout.page_summaries import PageSummaries

# Keys of one tensor-core product, and bytes of its tile; a split has at least two tiles.
_KEYS, _TILE_BYTES, _LEAST = 64, 16384, 2
# Steps whose keys and values are in flight or in use.
STAGES = 4
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
    limits: PageLimits | None = None,
    summarized: bool = False,
    workspace: DecodeWorkspace | None = None,
) -> torch.Tensor:
    """Attention of each sequence's new token over the best pages of each KV head.

    What the batch holds is looked at where it lies on a CPU; elsewhere
    :meth:`sparse_kernels.gpu.decode_batch.DecodeBatch.check` looks when asked.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: keys and values.
        summaries: of the layer; the newest page's are brought up to date.
        config: score and budget, and the length from which they hold.
        scale: softmax scale.
        dense: bool ``[sequences]``, those that attend all their pages whatever their length.
        limits: what sequences attend, in place of all but the score of ``config``, whose budget is the largest.
        summarized: whether the newest pages' summaries are left as they stand, as where several tokens are new and
            :func:`sparse_kernels.gpu.page_summaries.summarize_pages` was told of them.
        workspace: buffers; None makes some.

    Returns:
        ``[sequences, Hq, D]`` in the dtype of the queries.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    capacity = page_capacity(config, batch.keys.shape[1])
    check_choice(q, batch, summaries, config, dense, limits, summarized=summarized)
    if not q.shape[0]:
        return torch.empty_like(q)
    workspace = workspace or DecodeWorkspace.of(q, batch, capacity)
    chosen = launch_choice(
        q, batch, summaries, config, scale, dense, limits, workspace, summarized=summarized, awaited=True
    )  # fmt: skip
    out, sequences, kv_heads = torch.empty_like(q), q.shape[0], batch.keys.shape[2]
    held = workspace.nobody if dense is None else dense.view(torch.uint8)
    splits = chosen_splits(sequences, kv_heads)
    _launch_attention(
        q, batch, chosen, held, limits, workspace, out, scale, config, capacity, splits,
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
    if not q.shape[0]:
        return torch.empty_like(q)
    if looked_at(q):
        batch.check()
    workspace = workspace or DecodeWorkspace.of(q, batch)
    workspace.check(q, batch)
    out, (sequences, heads, dim), kv_heads = torch.empty_like(q), q.shape, batch.keys.shape[2]
    splits, group = whole_splits(sequences, kv_heads), heads // kv_heads
    _launch_attention(
        q, batch, batch.tables, workspace.nobody, None, workspace, out, scale, None, 0, splits, merge=False,
        PDL=False,
    )  # fmt: skip
    _launch_merge(
        (kv_heads, sequences, group),
        workspace.nobody, batch.lengths, workspace.parts, workspace.lse, out,
        sequences, splits, *out.stride()[:2],
        PAGE=batch.keys.shape[1], DIM=dim, GROUP=group, SEQUENCES=triton.next_power_of_2(sequences),
        TILE=_tile(q, batch), LEAST=_LEAST, MERGED=min(32, _MERGED // dim), **dependent_launch(q.device),
    )  # fmt: skip
    return out


def split_warps(rows: int, dim: int) -> int:
    """Warps of a program that attends a split, of so many padded query heads."""
    return 2 if rows * dim <= 2048 else 8


def _tile(q: torch.Tensor, batch: DecodeBatch) -> int:
    """Keys that a program multiplies at once."""
    return min(_KEYS, max(16, _TILE_BYTES // (q.shape[2] * q.element_size())))


def _launch_attention(
    q: torch.Tensor,
    batch: DecodeBatch,
    chosen: torch.Tensor,
    dense: torch.Tensor,
    limits: PageLimits | None,
    workspace: DecodeWorkspace,
    out: torch.Tensor,
    scale: float,
    config: DecodeConfig | None,
    capacity: int,
    splits: int,
    *,
    merge: bool,
    PDL: bool,
    **options: bool,
) -> None:
    sequences, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    rows, group = padded_rows(heads // kv_heads), heads // kv_heads
    groups, tile = triton.next_power_of_2(group), _tile(q, batch)
    # Each sequence may have one split more than its share; none has more than its table has room for.
    programs = min(splits + sequences, sequences * triton.cdiv(batch.tables.shape[1] * page, tile * _LEAST))
    _launch_splits(
        (kv_heads, programs),
        q, batch.keys, batch.values, batch.tables, batch.lengths, dense, *(limits or (dense, dense)), chosen,
        workspace.parts, workspace.lse, workspace.counters, workspace.selected, out,
        scale * math.log2(math.e), *((config.sparse_from, config.sink, config.recent) if config else (_ALWAYS, 0, 0)),
        capacity, sequences, splits, batch.tables.stride(0),
        *q.stride()[:2], *batch.keys.stride()[:3], *out.stride()[:2],
        PAGE=page, DIM=dim, GROUP=group, GROUPS=groups, ROWS=rows, HEADS=kv_heads, TILE=tile,
        SEQUENCES=triton.next_power_of_2(sequences), LEAST=_LEAST,
        MERGED=max(1, min(16, _MERGED // (groups * dim))) if merge else 0,
        EACH=limits is not None, STAGES=STAGES, PDL=PDL, num_warps=split_warps(rows, dim), **options,
    )  # fmt: skip


# A batch's number of sequences has its variants by powers of 2 only, and profiles of one score have none of their own.
@triton.jit(do_not_specialize=("sequences", "splits", "sink", "recent"))  # type: ignore[untyped-decorator]
def attend_pages(  # type: ignore[no-untyped-def]
    q, k, v, tables, lengths, dense, kinds, limits, chosen, parts, lse, counters, selected, out,
    scale, sparse_from, sink, recent, capacity, sequences, splits, s_table,
    s_qs, s_qh, s_kp, s_kt, s_kh, s_os, s_oh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, TILE: tl.constexpr, SEQUENCES: tl.constexpr, LEAST: tl.constexpr, MERGED: tl.constexpr,
    EACH: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The query heads of one KV head over one split of its pages; where MERGED, the last split's program merges.

    Pages of sink and recent tokens are attended while the others are still chosen. ``scale`` is that of powers of two.
    """
    i_kv = tl.program_id(0)
    i_p = tl.program_id(1)
    o_s = tl.arange(0, SEQUENCES)
    tiles, active = share_splits(
        lengths, dense, kinds, limits, sparse_from, capacity, sequences, splits, PAGE, TILE, SEQUENCES, LEAST, EACH
    )  # fmt: skip
    ends = tl.cumsum(active, 0)
    # The sequence that this program has a split of, its first program, and how many it has.
    number = tl.sum((ends <= i_p).to(tl.int32), 0)
    mine = o_s == number
    first = tl.sum(tl.where(mine, ends - active, 0), 0)
    active = tl.sum(tl.where(mine, active, 0), 0)
    tiles = tl.sum(tl.where(mine, tiles, 0), 0)
    if active > 0:
        i_s = number.to(tl.int64)
        o_r = tl.arange(0, ROWS)
        o_d = tl.arange(0, DIM)
        m_r = o_r < GROUP
        o_h = i_kv * GROUP + o_r
        length = tl.load(lengths + i_s)
        most = capacity
        shortest = sparse_from
        if EACH:
            shortest, most = own_limits(kinds, limits, i_s, True)
            sink, recent = own_ends(kinds, limits, i_s)
        count, tokens = attended_tokens(length, tl.load(dense + i_s), shortest, most, PAGE)
        # Written before the pages were scored: no need to wait for the choice.
        p_q = q + i_s * s_qs + o_h[:, None] * s_qh + o_d[None, :]
        b_q = tl.load(p_q, mask=m_r[:, None], other=0.0)
        p_table = tables + i_s * s_table
        p_told = selected + i_s * HEADS + i_kv
        p_k = k + i_kv * s_kh
        p_v = v + i_kv * s_kh
        b_m = tl.full([ROWS], -1e30, tl.float32)
        b_l = tl.zeros([ROWS], tl.float32)
        b_acc = tl.zeros([ROWS, DIM], tl.float32)
        split = i_p - first
        there = (length + PAGE - 1) // PAGE
        chosen_ones = tokens != length
        opening = 0
        known = 0
        rest = tiles
        if (PAGE >= TILE) & chosen_ones:
            opening = (sink + PAGE - 1) // PAGE
            known = opening + there - tl.maximum(length - recent, 0) // PAGE
            rest = (count - known) * (PAGE // TILE)
        before = known * PAGE // TILE
        # From the other end than shares of the rest, which are rounded the same way.
        begin, end = share(before, active - 1 - split, active)
        p_pages = p_table
        first_ones = opening
        ahead = count - known
        further = there - count
        for late in tl.range(0, 2, num_stages=1):
            if late:
                begin, end = share(rest, split, active)
                begin += before
                end += before
                first_ones = 0
                ahead = opening - known
                further = 0
                if chosen_ones:
                    await_told(p_told, 1)
                    p_pages = chosen + (i_s * HEADS + i_kv) * capacity
            b_m, b_l, b_acc = attend_tiles(
                b_q, b_m, b_l, b_acc, p_k, p_v, p_pages, begin, end, first_ones, ahead, further, count, tokens,
                scale, s_kp, s_kt, PAGE, DIM, TILE, STAGES,
            )  # fmt: skip
        b_o = b_acc / tl.maximum(b_l, 1e-30)[:, None]
        if active == 1:
            p_out = out + i_s * s_os + o_h[:, None] * s_oh + o_d[None, :]
            tl.store(p_out, b_o.to(out.dtype.element_ty), mask=m_r[:, None])
            tl.store(p_told, 0)
        else:
            row = i_kv * (splits + sequences) + first
            o_part = (i_kv * (splits + sequences) + i_p) * GROUP + o_r
            tl.store(parts + o_part[:, None] * DIM + o_d[None, :], b_o, mask=m_r[:, None])
            tl.store(lse + o_part, b_m + tl.log2(tl.maximum(b_l, 1e-30)), mask=m_r)
            if MERGED > 0:
                tl.debug_barrier()
                counter = counters + i_s * HEADS + i_kv
                if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
                    p_group = out + i_s * s_os + i_kv * GROUP * s_oh
                    merge_group(parts, lse, p_group, row, active, s_oh, DIM, GROUP, GROUPS, MERGED)
                    tl.store(counter, 0)
                    tl.store(p_told, 0)
    if PDL:
        # What follows this launch follows the choice too.
        tl.extra.cuda.gdc_wait()


_launch_splits, _launch_merge = Launcher(attend_pages), Launcher(merge_splits)
