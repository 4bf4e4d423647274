"""Means of sub-pages and of units of pages, gathered from the page summaries to logical order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.gpu.selection.plan import COLUMNS, SelectionPlan, Workspace
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.mean_correction import WIDTH

_UNITS_AT_ONCE = 32


class OrderedMeans(NamedTuple):
    """Means in logical order, zero where a sequence has none.

    Attributes:
        columns: ``[Hkv * steps * 64, D]``, sub-page means, 64 a product; a product's are ordered so that of its
            accumulators a thread holds whole blocks. Scratch: the next layer's go to the same place.
        means: ``[units, Hkv, D]``, mean keys of units of pages; empty without correction.
        value_means: mean values, same shape.
    """

    columns: torch.Tensor
    means: torch.Tensor
    value_means: torch.Tensor


def order_means(
    batch: PagedBatch, summaries: PageSummaries, plan: SelectionPlan, workspace: Workspace, dtype: torch.dtype
) -> OrderedMeans:
    """Gathers the means of all sequences of a batch, in ``dtype``.

    Args:
        batch: where the pages lie.
        summaries: of the layer; not stale.
        plan: of the batch.
        workspace: where the columns go.
        dtype: of the queries.
    """
    kv_heads, dim = batch.keys.shape[2:]
    steps, unit = plan.step_owner.numel(), plan.shape.unit
    columns = workspace.cut("columns", kv_heads * steps * COLUMNS * dim, dtype).view(-1, dim)
    means, value_means = (torch.empty(plan.units, kv_heads, dim, dtype=dtype, device=columns.device) for _ in range(2))
    sub, mean = summaries.sub_mean, summaries.mean
    _launch(
        (steps + plan.units // _UNITS_AT_ONCE, kv_heads),
        sub, mean, summaries.value_mean, columns, means, value_means,
        batch.tables, batch.lengths, plan.first_steps, plan.step_owner, plan.first_units, plan.chunk_owner,
        steps, kv_heads, batch.tables.stride(0), *sub.stride()[:3], *mean.stride()[:2],
        BLOCK=plan.shape.page, DIM=dim, COLUMNS=COLUMNS, SUBS=plan.shape.subs, UNIT=max(1, unit),
        UNITS=_UNITS_AT_ONCE, CHUNK=WIDTH, num_warps=8,
    )  # fmt: skip
    return OrderedMeans(columns, means, value_means)


@triton.jit  # type: ignore[untyped-decorator]
def column_block(o_c, COLUMNS: tl.constexpr, SUBS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The block of each column of a product, and the sub-page.

    Of every 8 neighbouring accumulators of a row one thread has 2: these, over all eights, are consecutive sub-pages.
    """
    o_j = o_c // 8 * 2 + o_c % 2
    return (o_c % 8) // 2 * (COLUMNS // 4 // SUBS) + o_j // SUBS, o_j % SUBS


@triton.jit(do_not_specialize=("steps", "kv_heads"))  # type: ignore[untyped-decorator]
def gather_means(  # type: ignore[no-untyped-def]
    sub_means, means, value_means, columns, unit_means, unit_value_means,
    tables, lengths, first_steps, step_owner, first_units, chunk_owner,
    steps, kv_heads, s_table, s_sp, s_ss, s_sh, s_mp, s_mh,
    BLOCK: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, SUBS: tl.constexpr, UNIT: tl.constexpr,
    UNITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The columns of one product, or some units, of one KV head."""
    i_p = tl.program_id(0)
    i_kv = tl.program_id(1)
    o_d = tl.arange(0, DIM)
    if i_p < steps:
        i_s = tl.load(step_owner + i_p)
        blocks = (tl.load(lengths + i_s) + BLOCK - 1) // BLOCK
        o_c = tl.arange(0, COLUMNS)
        o_in, o_sub = column_block(o_c, COLUMNS, SUBS)
        o_b = (i_p - tl.load(first_steps + i_s)) * (COLUMNS // SUBS) + o_in
        m_b = o_b < blocks
        page = tl.load(tables + i_s.to(tl.int64) * s_table + o_b, mask=m_b, other=0).to(tl.int64)
        p_x = sub_means + (page * s_sp + o_sub * s_ss + i_kv * s_sh)[:, None] + o_d[None, :]
        b_x = tl.load(p_x, mask=m_b[:, None], other=0.0)
        to = (i_kv * steps + i_p).to(tl.int64) * COLUMNS + o_c
        tl.store(columns + to[:, None] * DIM + o_d[None, :], b_x.to(columns.dtype.element_ty))
    else:
        first = (i_p - steps) * UNITS
        i_own = tl.load(chunk_owner + first // CHUNK)
        whole = tl.load(lengths + i_own) // (BLOCK * UNIT)
        o_u = first + tl.arange(0, UNITS)
        o_n = o_u - tl.load(first_units + i_own)
        # A unit that is not whole lies before no tile; where it reads pages that are not there stand zeros.
        m_u = o_n < whole
        b_k = tl.zeros([UNITS, DIM], tl.float32)
        b_v = tl.zeros([UNITS, DIM], tl.float32)
        for i in tl.static_range(UNIT):
            number = tl.load(tables + i_own.to(tl.int64) * s_table + o_n * UNIT + i, mask=m_u, other=0).to(tl.int64)
            o_x = (number * s_mp + i_kv * s_mh)[:, None] + o_d[None, :]
            b_k += tl.load(means + o_x, mask=m_u[:, None], other=0.0).to(tl.float32)
            b_v += tl.load(value_means + o_x, mask=m_u[:, None], other=0.0).to(tl.float32)
        o_y = (o_u.to(tl.int64) * kv_heads + i_kv)[:, None] * DIM + o_d[None, :]
        tl.store(unit_means + o_y, (b_k * (1.0 / UNIT)).to(unit_means.dtype.element_ty))
        tl.store(unit_value_means + o_y, (b_v * (1.0 / UNIT)).to(unit_value_means.dtype.element_ty))


_launch = Launcher(gather_means)
