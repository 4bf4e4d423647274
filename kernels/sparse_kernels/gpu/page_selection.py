"""Which pages each new token of a batch attends, in Triton: the best by their scores, found without a sort.

Every shape is fixed by the batch and the capacity, so that a CUDA graph can replay it while sequences grow: how many
pages there are is read on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.config import DecodeConfig
from sparse_kernels.gpu.checks import check_device, check_summaries, looked_at
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace, check_batch, dependent_launch
from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.gpu.page_limits import PageLimits, chosen_from, own_limits, page_capacity
from sparse_kernels.gpu.page_scores import launch_scores, score_rows
from sparse_kernels.layout.page_summaries import PageSummaries

# A sequence's scores lie in the registers of one program, and two counts of them in a word.
MOST_BLOCKS = 16384


def select_pages(
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
    """The best pages of each sequence and KV head by ``config.score``, those of sink and recent tokens among them.

    Pages that score equally go by their place: the earlier one is taken. The newest token's page is summarized on the
    way: its page's other sub-pages, and all other pages, must have been summarized before. What the batch holds is
    looked at where it lies on a CPU; elsewhere :meth:`sparse_kernels.gpu.decode_batch.DecodeBatch.check` looks when
    asked.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: where the sequences lie.
        summaries: of the layer, in the dtype of the queries.
        config: score, budget, sink and recent tokens, and the length from which pages are chosen.
        scale: softmax scale.
        dense: bool ``[sequences]``, those that attend all their pages whatever their length.
        limits: what sequences attend, in place of all but the score of ``config``, whose budget is the largest.
        summarized: whether the newest page's summaries are left as they stand, as where several tokens are new.
        workspace: buffers; None makes some.

    Returns:
        int32 ``[sequences, Hkv, capacity]``, physical pages in the order of the sequence, the newest one last, and past
        its own limit nothing. Of a sequence that attends everything (one that is dense, shorter than
        ``config.sparse_from``, or of no more pages than the capacity) nothing is written.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_choice(q, batch, summaries, config, dense, limits, summarized=summarized)
    workspace = workspace or DecodeWorkspace.of(q, batch, page_capacity(config, batch.keys.shape[1]))
    return launch_choice(q, batch, summaries, config, scale, dense, limits, workspace, summarized=summarized)


def check_choice(
    q: torch.Tensor,
    batch: DecodeBatch,
    summaries: PageSummaries,
    config: DecodeConfig,
    dense: torch.Tensor | None,
    limits: PageLimits | None,
    *,
    summarized: bool,
) -> None:
    """Checks what :func:`select_pages` is given.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_batch(q, batch, dense)
    check_summaries(q, batch.keys, summaries)
    blocks = batch.tables.shape[1]
    if blocks > MOST_BLOCKS:
        raise ValueError(f"batch: tables of {blocks} blocks, the most are {MOST_BLOCKS}")
    if limits is not None:
        limits.check(q.shape[0])
        check_device("limits", q, *limits)
    if looked_at(q):
        read = chosen_from(batch.lengths, config, batch.keys.shape[1], dense=dense, limits=limits)
        batch.check(summaries, read, summarized=summarized)


def launch_choice(
    q: torch.Tensor,
    batch: DecodeBatch,
    summaries: PageSummaries,
    config: DecodeConfig,
    scale: float,
    dense: torch.Tensor | None,
    limits: PageLimits | None,
    workspace: DecodeWorkspace,
    *,
    summarized: bool,
) -> torch.Tensor:
    """:func:`select_pages` of arguments that are checked.

    Raises:
        ValueError: when the workspace is made for less.
    """
    sequences, heads = q.shape[:2]
    page, kv_heads, blocks = batch.keys.shape[1], batch.keys.shape[2], batch.tables.shape[1]
    capacity = page_capacity(config, page)
    workspace.check(q, batch, capacity)
    held = workspace.nobody if dense is None else dense.view(torch.uint8)
    launch_scores(q, batch, summaries, config, scale, capacity, held, limits, workspace, summarized=summarized)
    width, rows = max(16, triton.next_power_of_2(blocks)), score_rows(config, heads // kv_heads)
    _launch(
        (kv_heads, sequences),
        batch.tables, batch.lengths, held, *(limits or (held, held)), workspace.masses, workspace.chosen,
        config.sink, config.recent, config.sparse_from, capacity, blocks, batch.tables.stride(0),
        PAGE=page, GROUP=rows, GROUPS=triton.next_power_of_2(rows), HEADS=kv_heads, WIDTH=width,
        SHARES=config.score != "spread", EACH=limits is not None, FUSED=not triton.knobs.runtime.interpret,
        num_warps=8 if width <= 2048 else 16 if width <= 8192 else 32, **dependent_launch(q.device),
    )  # fmt: skip
    return workspace.chosen[: sequences * kv_heads * capacity].view(sequences, kv_heads, capacity)


@triton.jit  # type: ignore[untyped-decorator]
def choose_pages(  # type: ignore[no-untyped-def]
    tables, lengths, dense, kinds, limits, masses, chosen, sink, recent, sparse_from, capacity, blocks, s_table,
    PAGE: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    SHARES: tl.constexpr, EACH: tl.constexpr, FUSED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The pages of one sequence and KV head; a tile no wider than it needs holds their scores."""
    i_kv = tl.program_id(0)
    i_s = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + i_s)
    there = (length + PAGE - 1) // PAGE
    want = capacity
    if EACH:
        sparse_from, want = own_limits(kinds, limits, i_s, True)
        p_own = limits + tl.load(kinds + i_s) * 4
        sink = tl.load(p_own + 2)
        recent = tl.load(p_own + 3)
    whole = (length < sparse_from) | (tl.load(dense + i_s) != 0) | (there <= want)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if whole == 0:
        p_mass = masses + (i_s * HEADS + i_kv) * GROUP * blocks
        p_table = tables + i_s * s_table
        p_out = chosen + (i_s * HEADS + i_kv) * capacity
        if WIDTH <= 512:
            _choose(
                p_mass, p_table, p_out, there, length, want, sink, recent, blocks,
                PAGE, GROUP, GROUPS, WIDTH, SHARES, FUSED,
            )  # fmt: skip
        elif there <= 512:
            _choose(
                p_mass, p_table, p_out, there, length, want, sink, recent, blocks,
                PAGE, GROUP, GROUPS, 512, SHARES, FUSED,
            )  # fmt: skip
        elif (WIDTH > 2048) & (there <= 2048):
            _choose(
                p_mass, p_table, p_out, there, length, want, sink, recent, blocks,
                PAGE, GROUP, GROUPS, 2048, SHARES, FUSED,
            )  # fmt: skip
        else:
            _choose(
                p_mass, p_table, p_out, there, length, want, sink, recent, blocks,
                PAGE, GROUP, GROUPS, WIDTH, SHARES, FUSED,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _choose(  # type: ignore[no-untyped-def]
    p_mass, p_table, p_out, there, length, capacity, sink, recent, blocks,
    PAGE: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SHARES: tl.constexpr,
    FUSED: tl.constexpr,
):  # fmt: skip
    """The ``capacity`` best of more pages, in their order."""
    o_w = tl.arange(0, WIDTH)
    m_w = o_w < there
    if WIDTH <= 8192:
        # Early, while registers last: nothing waits for it then.
        page = tl.load(p_table + o_w, mask=m_w, other=0)
    score = _scores(p_mass, m_w, blocks, GROUP, GROUPS, WIDTH, SHARES)
    first = tl.maximum(length - recent, 0) // PAGE
    forced = ((o_w * PAGE < sink) | (o_w >= first)) & m_w
    free = m_w & (forced == 0)
    number = tl.sum(free.to(tl.int32), 0)
    want = capacity - (there - number)
    score = tl.where(free, score, float("-inf"))
    lo, hi, above = _bounds(score, free, number, want, FUSED)
    # Those that score `hi` or more are in; of those between, which score alike or are all wanted, the earliest.
    sure = forced | (score >= hi)
    tied = free & (score >= lo) & (score < hi)
    both = tl.cumsum(tied.to(tl.int32) + (sure.to(tl.int32) << 16), 0)
    rank = both & 0xFFFF
    left = want - above
    if WIDTH > 8192:
        page = tl.load(p_table + o_w, mask=m_w, other=0)
    tl.store(p_out + (both >> 16) + tl.minimum(rank, left) - 1, page, mask=sure | (tied & (rank <= left)))


@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    p_mass, m_w, blocks, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SHARES: tl.constexpr
):  # fmt: skip
    """Finite scores of all pages: of shares the logarithm, the largest of the group."""
    MANY: tl.constexpr = 8192 // WIDTH if WIDTH < 8192 else 1
    TILE: tl.constexpr = GROUPS if GROUPS < MANY else MANY
    o_w = tl.arange(0, WIDTH)
    score = tl.full([WIDTH], float("-inf"), tl.float32)
    for head in range(0, GROUP, TILE):
        o_g = head + tl.arange(0, TILE)
        m_x = (o_g < GROUP)[:, None] & m_w[None, :]
        p_x = p_mass + o_g[:, None] * blocks + o_w[None, :]
        # Another kernel wrote it, maybe while this one had begun.
        x = tl.load(p_x, mask=m_x, other=float("-inf"), cache_modifier=".cg")
        if SHARES:
            b_m = tl.maximum(tl.max(x, 1), -1e30)
            b_l = tl.sum(tl.exp2(x - b_m[:, None]), 1)
            x -= (b_m + tl.log2(tl.maximum(b_l, 1e-30)))[:, None]
        score = tl.maximum(score, tl.max(x, 0))
    return tl.where(score > -1e30, tl.minimum(score, 1e30), -1e30)


@triton.jit  # type: ignore[untyped-decorator]
def _bounds(score, free, number, want, FUSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """``lo < hi``, and how many score ``hi`` or more: less than are wanted, and with those from ``lo`` on enough.

    Seven pivots a step, until those from ``lo`` on are as many as are wanted or all between score alike.
    """
    lo = tl.min(tl.where(free, score, float("inf")), 0)
    hi = tl.max(score, 0)
    hi += tl.maximum(1.0, tl.abs(hi) * 1e-6)
    above_lo = number
    above_hi = want * 0
    goal = want
    if want <= 0:
        lo = hi
        above_lo = want
    while above_lo != goal:
        step = (hi - lo) * 0.125
        p1 = lo + step
        p2 = lo + step * 2
        p3 = lo + step * 3
        p4 = lo + step * 4
        p5 = lo + step * 5
        p6 = lo + step * 6
        p7 = lo + step * 7
        # Two counts to a word.
        a = (score >= p1).to(tl.int32) + ((score >= p2).to(tl.int32) << 16)
        b = (score >= p3).to(tl.int32) + ((score >= p4).to(tl.int32) << 16)
        c = (score >= p5).to(tl.int32) + ((score >= p6).to(tl.int32) << 16)
        d = (score >= p7).to(tl.int32)
        if FUSED:
            a, b, c, d = tl.reduce((a, b, c, d), 0, _add)
        else:
            a = tl.sum(a, 0)
            b = tl.sum(b, 0)
            c = tl.sum(c, 0)
            d = tl.sum(d, 0)
        low = lo
        high = hi
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p1, a & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p2, a >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p3, b & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p4, b >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p5, c & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p6, c >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p7, d, want)
        if (lo <= low) & (hi >= high):
            # No number lies between.
            goal = above_lo
    return lo, hi, above_hi


@triton.jit
def _narrow(lo, hi, above_lo, above_hi, pivot, above, want):  # type: ignore[no-untyped-def]
    """The interval with a pivot in place of one of its ends, and how many score at least so much."""
    lower = (above >= want) & (pivot > lo)
    upper = (above < want) & (pivot < hi)
    lo = tl.where(lower, pivot, lo)
    above_lo = tl.where(lower, above, above_lo)
    hi = tl.where(upper, pivot, hi)
    above_hi = tl.where(upper, above, above_hi)
    return lo, hi, above_lo, above_hi


@triton.jit
def _add(a0, a1, a2, a3, b0, b1, b2, b3):  # type: ignore[no-untyped-def]
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


_launch = Launcher(choose_pages)
