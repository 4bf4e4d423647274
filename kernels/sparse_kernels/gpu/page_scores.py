"""What pages are worth to each new token of a batch, in Triton; the newest page is summarized on the way.

Programs share the pages that are there, whatever the width of the tables. The score is one of
:data:`sparse_kernels.cpu.sparse_paged_decode.PAGE_SCORES`, chosen at compile time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sparse_kernels.config import PAGE_SCORE_NAMES, DecodeConfig
from sparse_kernels.gpu.checks import padded_rows
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace, dependent_launch, tell
from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.gpu.page_limits import PageLimits, own_limits
from sparse_kernels.gpu.page_summaries import summarize_page
from sparse_kernels.layout.page_summaries import PageSummaries

# Programs of a step, and of one sequence and KV head.
_PROGRAMS, _MOST_SPLITS = 1024, 64
# From so many pairs of sequences and KV heads on, wide steps pay.
_MANY_PAIRS = 128
# Bytes of the means of one step.
_STEP_BYTES = 32768
# Steps whose means are in flight or in use.
STAGES = 4


def score_rows(config: DecodeConfig, group: int) -> int:
    """Rows of scores of a KV head: one of each query head where they are shares, else the best."""
    return 1 if config.score == "spread" else group


def launch_scores(
    q: torch.Tensor,
    batch: DecodeBatch,
    summaries: PageSummaries,
    config: DecodeConfig,
    scale: float,
    capacity: int,
    dense: torch.Tensor,
    limits: PageLimits | None,
    workspace: DecodeWorkspace,
    *,
    summarized: bool,
) -> int:
    """Writes ``workspace.masses``, float32 ``[sequences, Hkv, score rows, blocks]``; arguments are checked.

    Args:
        q: ``[sequences, Hq, D]``.
        batch: where the sequences lie.
        summaries: of the layer.
        config: score, and the length from which pages are chosen.
        scale: softmax scale.
        capacity: pages that are chosen at most; sequences that have no more are not scored.
        dense: uint8 ``[sequences]``, those that are not scored either.
        limits: of sequences, in place of ``config.sparse_from`` and ``capacity``.
        workspace: what is written.
        summarized: whether the newest pages' summaries are left as they stand.

    Returns:
        Programs of each sequence and KV head, which count themselves in ``workspace.scored``.
    """
    sequences, heads, dim = q.shape
    _, page, kv_heads, _ = batch.keys.shape
    group, pairs, subs = heads // kv_heads, sequences * kv_heads, page // summaries.sub_page
    spread = config.score == PAGE_SCORE_NAMES[0]
    columns = min(128 if pairs >= _MANY_PAIRS else 64, _STEP_BYTES // (dim * q.element_size()))
    step = max(16, columns) // (1 if spread else subs)
    splits = min(max(2, min(_MOST_SPLITS, _PROGRAMS // pairs)), -(-batch.tables.shape[1] // step))
    _launch(
        (kv_heads, splits + (not summarized), sequences),
        q, batch.keys, batch.values, summaries.sub_mean, summaries.sub_count, summaries.mean, summaries.value_mean,
        summaries.spread, summaries.stale.view(torch.uint8), batch.tables, batch.lengths, dense,
        *(limits or (dense, dense)), workspace.masses, workspace.scored,
        scale * math.log2(math.e), config.sparse_from, capacity, batch.tables.shape[1], splits,
        batch.tables.stride(0), *q.stride()[:2], *batch.keys.stride()[:3],
        PAGE=page, DIM=dim, GROUP=group, ROWS=padded_rows(group), HEADS=kv_heads, SUBS=subs,
        FULL=math.log2(summaries.sub_page), STEP=step,
        SPREAD=spread, NEWEST=int(not summarized), EACH=limits is not None, STAGES=STAGES,
        num_warps=4 if dim <= 128 else 8, **dependent_launch(q.device),
    )  # fmt: skip
    return splits


@triton.jit(do_not_specialize=("splits",))  # type: ignore[untyped-decorator]
def score_pages(  # type: ignore[no-untyped-def]
    q, k, v, sub_means, sub_counts, means, value_means, spreads, stale, tables, lengths, dense, kinds, limits,
    masses, scored, scale, sparse_from, capacity, blocks, splits, s_table,
    s_qs, s_qh, s_kp, s_kt, s_kh,
    PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
    SUBS: tl.constexpr, FULL: tl.constexpr, STEP: tl.constexpr, SPREAD: tl.constexpr, NEWEST: tl.constexpr,
    EACH: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Scores a share of the pages of one sequence and KV head; where NEWEST, the first program summarizes instead.

    ``scale`` is that of powers of two.
    """
    i_kv = tl.program_id(0)
    i_c = tl.program_id(1) - NEWEST
    i_s = tl.program_id(2).to(tl.int64)
    SUB: tl.constexpr = PAGE // SUBS
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.load(lengths + i_s)
    there = (length + PAGE - 1) // PAGE
    filled = length - (there - 1) * PAGE
    p_table = tables + i_s * s_table
    summed = there > 0
    if EACH:
        sparse_from, capacity = own_limits(kinds, limits, i_s, True)
        # Nobody reads the summaries of a sequence without a budget.
        summed = summed & (capacity > 0)
    if i_c < 0:
        if summed:
            # Of the sub-means only those that nobody scores: the newest one is another program's.
            summarize_page(
                k, v, sub_means, sub_counts, means, value_means, spreads, stale,
                tl.load(p_table + there - 1).to(tl.int64), filled, i_kv, (filled - 1) // SUB + 1, s_kp, s_kt, s_kh,
                PAGE, SUB, HEADS, DIM,
            )  # fmt: skip
    else:
        each = (there + splits - 1) // splits
        each = (each + STEP - 1) // STEP * STEP
        begin = i_c * each
        end = tl.minimum(begin + each, there)
        if begin < end:
            if summed & (end == there) & NEWEST:
                _newest_sub_page(
                    k, sub_means, tl.load(p_table + there - 1).to(tl.int64), filled, i_kv, s_kp, s_kt, s_kh,
                    SUB, SUBS, HEADS, DIM,
                )  # fmt: skip
            whole = (length < sparse_from) | (tl.load(dense + i_s) != 0) | (there <= capacity)
            if whole == 0:
                o_r = tl.arange(0, ROWS)
                o_d = tl.arange(0, DIM)
                p_q = q + i_s * s_qs + (i_kv * GROUP + o_r)[:, None] * s_qh + o_d[None, :]
                b_q = tl.load(p_q, mask=(o_r < GROUP)[:, None], other=0.0)
                if SPREAD:
                    _spread(
                        b_q, means, spreads, p_table, masses + (i_s * HEADS + i_kv) * blocks, begin, end, there, i_kv,
                        GROUP, ROWS, HEADS, DIM, STEP, STAGES,
                    )  # fmt: skip
                else:
                    _sub_pages(
                        b_q, sub_means, p_table, masses + (i_s * HEADS + i_kv) * GROUP * blocks, begin, end, there,
                        filled, i_kv, scale, blocks, GROUP, ROWS, HEADS, DIM, SUB, SUBS, FULL, STEP, STAGES,
                    )  # fmt: skip
        tell(scored + i_s * HEADS + i_kv)


@triton.jit  # type: ignore[untyped-decorator]
def _newest_sub_page(  # type: ignore[no-untyped-def]
    k, sub_means, page, filled, i_kv, s_kp, s_kt, s_kh,
    SUB: tl.constexpr, SUBS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Mean of the sub-page that the newest token is in, before its page is scored."""
    sub = (filled - 1) // SUB
    o_t = sub * SUB + tl.arange(0, SUB)
    o_d = tl.arange(0, DIM)
    p_k = k + page * s_kp + i_kv * s_kh + o_t[:, None] * s_kt + o_d[None, :]
    b_k = tl.load(p_k, mask=(o_t < filled)[:, None], other=0.0).to(tl.float32)
    b_mean = tl.sum(b_k, 0) / (filled - sub * SUB).to(tl.float32)
    tl.store(sub_means + ((page * SUBS + sub) * HEADS + i_kv) * DIM + o_d, b_mean)
    tl.debug_barrier()


@triton.jit  # type: ignore[untyped-decorator]
def _sub_pages(  # type: ignore[no-untyped-def]
    b_q, sub_means, p_table, p_mass, begin, end, there, filled, i_kv, scale, blocks,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, SUB: tl.constexpr,
    SUBS: tl.constexpr, FULL: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Logarithm to base 2 of what pages weigh for each query head, each sub-page's keys taken for their mean."""
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    o_n = tl.arange(0, STEP)
    o_c = tl.arange(0, STEP * SUBS)
    o_sub = o_c % SUBS
    # Logarithm of the keys behind a mean: the last page may not have all of them.
    here = tl.minimum(tl.maximum(filled - o_sub * SUB, 0), SUB)
    b_last = tl.where(here > 0, tl.log2(tl.maximum(here, 1).to(tl.float32)), float("-inf"))
    for i in tl.range(begin, end, STEP, num_stages=STAGES):
        o_b = i + o_c // SUBS
        # The last page stands in for what is not there, which spares masks on the means.
        page = tl.load(p_table + tl.minimum(o_b, there - 1)).to(tl.int64)
        p_mean = sub_means + (((page * SUBS + o_sub) * HEADS + i_kv) * DIM)[:, None] + o_d[None, :]
        bias = tl.where(o_b < there - 1, FULL, tl.where(o_b == there - 1, b_last, float("-inf")))
        b_s = tl.dot(b_q, tl.trans(tl.load(p_mean)), input_precision="ieee") * scale
        b_s = tl.where((bias > -1.0)[None, :], b_s + bias[None, :], float("-inf"))
        b_s = tl.reshape(b_s, (ROWS, STEP, SUBS))
        b_m = tl.maximum(tl.max(b_s, 2), -1e30)
        b_l = tl.sum(tl.exp2(b_s - b_m[:, :, None]), 2)
        b_mass = b_m + tl.log2(tl.maximum(b_l, 1e-30))
        m_mass = (o_r < GROUP)[:, None] & (i + o_n < there)[None, :]
        tl.store(p_mass + o_r[:, None] * blocks + (i + o_n)[None, :], b_mass, mask=m_mass)


@triton.jit  # type: ignore[untyped-decorator]
def _spread(  # type: ignore[no-untyped-def]
    b_q, means, spreads, p_table, p_score, begin, end, there, i_kv,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """``max over the group of (q . mean + 0.5 |q| spread)``; the newest page is kept whatever its score."""
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    o_n = tl.arange(0, STEP)
    b_norm = b_q.to(tl.float32)
    b_norm = 0.5 * tl.sqrt(tl.sum(b_norm * b_norm, 1))
    for i in tl.range(begin, end, STEP, num_stages=STAGES):
        page = tl.load(p_table + tl.minimum(i + o_n, there - 1)).to(tl.int64)
        b_mean = tl.load(means + ((page * HEADS + i_kv) * DIM)[:, None] + o_d[None, :])
        b_spread = tl.load(spreads + page * HEADS + i_kv)
        b_s = tl.dot(b_q, tl.trans(b_mean), input_precision="ieee") + b_norm[:, None] * b_spread[None, :]
        b_s = tl.max(tl.where((o_r < GROUP)[:, None], b_s, float("-inf")), 0)
        tl.store(p_score + i + o_n, b_s, mask=i + o_n < there)


_launch = Launcher(score_pages)
