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
from sparse_kernels.gpu.decode_batch import (
    DecodeBatch,
    DecodeWorkspace,
    await_told,
    check_batch,
    dependent_launch,
    tell,
)
from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.gpu.page_limits import PageLimits, chosen_from, own_ends, own_limits, page_capacity
from sparse_kernels.gpu.page_scores import launch_scores, score_rows
from sparse_kernels.gpu.selection.score_search import bounds
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
    return launch_choice(
        q, batch, summaries, config, scale, dense, limits, workspace, summarized=summarized, awaited=False
    )  # fmt: skip


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
    awaited: bool,
) -> torch.Tensor:
    """:func:`select_pages` of arguments that are checked; where ``awaited``, ``workspace.selected`` tells of its pairs.

    Raises:
        ValueError: when the workspace is made for less.
    """
    sequences, heads = q.shape[:2]
    page, kv_heads, blocks = batch.keys.shape[1], batch.keys.shape[2], batch.tables.shape[1]
    capacity = page_capacity(config, page)
    workspace.check(q, batch, capacity)
    held = workspace.nobody if dense is None else dense.view(torch.uint8)
    told = launch_scores(q, batch, summaries, config, scale, capacity, held, limits, workspace, summarized=summarized)
    width, rows = max(16, triton.next_power_of_2(blocks)), score_rows(config, heads // kv_heads)
    _launch(
        (kv_heads, sequences),
        batch.tables, batch.lengths, held, *(limits or (held, held)), workspace.masses, workspace.chosen,
        workspace.scored, workspace.selected,
        config.sink, config.recent, config.sparse_from, capacity, blocks, told, batch.tables.stride(0),
        PAGE=page, GROUP=rows, GROUPS=triton.next_power_of_2(rows), HEADS=kv_heads, WIDTH=width,
        SHARES=config.score != "spread", EACH=limits is not None, FUSED=not triton.knobs.runtime.interpret,
        AWAITED=awaited, num_warps=8 if width <= 2048 else 16 if width <= 8192 else 32, **dependent_launch(q.device),
    )  # fmt: skip
    return workspace.chosen[: sequences * kv_heads * capacity].view(sequences, kv_heads, capacity)


@triton.jit(do_not_specialize=("told",))  # type: ignore[untyped-decorator]
def choose_pages(  # type: ignore[no-untyped-def]
    tables, lengths, dense, kinds, limits, masses, chosen, scored, selected,
    sink, recent, sparse_from, capacity, blocks, told, s_table,
    PAGE: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    SHARES: tl.constexpr, EACH: tl.constexpr, FUSED: tl.constexpr, AWAITED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The pages of one sequence and KV head; a tile no wider than it needs holds their scores."""
    i_kv = tl.program_id(0)
    i_s = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + i_s)
    there = (length + PAGE - 1) // PAGE
    want = capacity
    if EACH:
        sparse_from, want = own_limits(kinds, limits, i_s, True)
        sink, recent = own_ends(kinds, limits, i_s)
    whole = (length < sparse_from) | (tl.load(dense + i_s) != 0) | (there <= want)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    own = i_s * HEADS + i_kv
    await_told(scored + own, told)
    tl.store(scored + own, 0)
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
        if AWAITED:
            tell(selected + own)
    if PDL:
        # What follows this launch follows the scores too.
        tl.extra.cuda.gdc_wait()


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
    lo, hi, above = bounds(score, free, number, want, FUSED)
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


_launch = Launcher(choose_pages)
