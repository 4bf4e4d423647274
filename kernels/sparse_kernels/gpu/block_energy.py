"""How strongly each query tile attends each key block, in Triton: sampled rows against columns that stand for keys.

One program works for one tile and KV head: it reads all columns for the rows' softmax denominators, and once more for
the blocks' shares. Nothing of the size rows times columns is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from sparse_kernels.config import PrefillConfig
from sparse_kernels.gpu.checks import check_cache, check_rows, check_summaries, padded_rows
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.scores.energy import Energy, headroom, normalized

# Columns of one tensor-core product.
_COLUMNS = 64


# What rows are scored against, by physical page: [pages, columns a page, Hkv, D].
COLUMNS: dict[str, Callable[[PagedBatch, PageSummaries], torch.Tensor]] = {
    "sampled_rows": lambda batch, summaries: batch.keys,
    "sub_means": lambda batch, summaries: summaries.sub_mean,
    "block_means": lambda batch, summaries: summaries.mean[:, None],
}


def block_energy(
    q: torch.Tensor,
    batch: PagedBatch,
    summaries: PageSummaries,
    config: PrefillConfig,
    scale: float,
    wanted: torch.Tensor | None = None,
) -> Energy:
    """What :func:`sparse_kernels.scores.block_energy_cpu` says of one sequence, for a batch, by ``config.score``.

    Args:
        q: ``[rows, Hq, D]``, the queries of all sequences.
        batch: keys and tiles; its tiles are ``config.query_tile`` rows.
        summaries: of the layer; not stale.
        config: score, sampled rows, sink and exponent.
        scale: softmax scale.
        wanted: bool ``[tiles]``; other tiles get zeros.

    Returns:
        Shares float32 ``[Hkv, tiles, blocks]``. A row that sees no whole column gives nothing to any block, so that a
        tile's mass may add up to less than one.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    heads, dim = q.shape[1:]
    page, kv_heads = batch.keys.shape[1:3]
    check_scored(q, batch, summaries, config)
    tile, tiles = batch.tiles.rows, batch.tiles.number.numel()
    columns = COLUMNS[config.score](batch, summaries)
    per = columns.shape[1]
    if columns.stride(3) != 1 or per > _COLUMNS or _COLUMNS % per:
        raise ValueError(f"summaries: {per} columns a page do not divide {_COLUMNS}")
    mass, need = torch.zeros(2, kv_heads, tiles, batch.tables.shape[1], device=q.device)
    if tiles:
        asked = torch.ones(tiles, dtype=torch.int8, device=q.device) if wanted is None else wanted.to(torch.int8)
        sampled, group = -(-tile // config.query_stride), heads // kv_heads
        kernel[(tiles, kv_heads)](
            q, columns, mass, need,
            batch.tables, batch.lengths, batch.starts, batch.tiles.sequence, batch.tiles.number, asked,
            scale, config.peak, headroom(config.peak), -(-config.sink // page),
            tiles, mass.shape[2], batch.tables.stride(0), *q.stride()[:2], *columns.stride()[:3],
            TILE=tile, BLOCK=page, DIM=dim, GROUP=group, SAMPLED=sampled, STRIDE=config.query_stride,
            ROWS=padded_rows(sampled * group), COLUMNS=_COLUMNS, PER=per,
            num_warps=4 if dim <= 128 else 8, num_stages=2,
        )  # fmt: skip
    return Energy(mass, normalized(need))


def check_scored(q: torch.Tensor, batch: PagedBatch, summaries: PageSummaries, config: PrefillConfig) -> None:
    """Checks what is scored against what.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_cache(q, batch.keys, batch.values)
    page, tile = batch.page, batch.tiles.rows
    if config.score not in COLUMNS:
        raise ValueError(f"score: must be one of {', '.join(COLUMNS)} on a GPU, not {config.score}")
    if tile != config.query_tile or tile % page:
        raise ValueError(f"batch: tiles of {tile} rows and pages of {page}; query_tile is {config.query_tile}")
    check_rows(q, batch)
    check_summaries(q, batch.keys, summaries)


@triton.jit  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    b_q, columns, p_table, i, near, length, scale, o_p, s_cp, s_ct,
    BLOCK: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Scores of the columns from block ``i`` on, in units of log 2; minus infinity where a row does not see it all."""
    o_c = tl.arange(0, COLUMNS)
    o_d = tl.arange(0, DIM)
    o_b = i + o_c // PER
    end = o_b * BLOCK + (o_c % PER + 1) * (BLOCK // PER)
    # Past the end lies what another sequence left, NaN included.
    m_c = (o_b < near) & (end <= length)
    page = tl.load(p_table + o_b, mask=m_c, other=0).to(tl.int64)
    p_c = columns + (page * s_cp + (o_c % PER) * s_ct)[:, None] + o_d[None, :]
    b_c = tl.load(p_c, mask=m_c[:, None], other=0.0).to(b_q.dtype)
    b_s = tl.dot(b_q, tl.trans(b_c), input_precision="ieee") * (scale * 1.4426950408889634)
    return tl.where((end[None, :] <= o_p[:, None] + 1) & m_c[None, :], b_s, float("-inf"))


@triton.jit
def _power(b_x, exponent):  # type: ignore[no-untyped-def]
    """A power of what is not negative."""
    return tl.where(b_x > 0, tl.exp2(exponent * tl.log2(tl.maximum(b_x, 1e-30))), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    q, columns, mass, need,
    tables, lengths, starts, tile_sequence, tile_number, asked,
    scale, peak, headroom, sink,
    tiles, blocks, s_table, s_qt, s_qh, s_cp, s_ct, s_ch,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, SAMPLED: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """One query tile of one KV head; the arguments are those of :func:`block_energy`, and strides."""
    # The last tiles take longest: first.
    i_t = tiles - 1 - tl.program_id(0)
    i_kv = tl.program_id(1)
    if tl.load(asked + i_t) != 0:
        NEW: tl.constexpr = COLUMNS // PER
        i_s = tl.load(tile_sequence + i_t).to(tl.int64)
        number = tl.load(tile_number + i_t)
        length = tl.load(lengths + i_s)
        first = tl.load(starts + i_s)
        prefix = length - (tl.load(starts + i_s + 1) - first)

        # Rows are counted from the tile's end: its last row sees the most keys.
        o_r = tl.arange(0, ROWS)
        o_k = o_r // GROUP
        o_p = (number + 1) * TILE - 1 - STRIDE * (SAMPLED - 1 - o_k)
        m_r = (o_p >= prefix) & (o_p < length) & (o_k < SAMPLED)
        # A tile cut short by the end of the prompt may have none of them: its last row stands in.
        stands_in = (tl.sum(m_r.to(tl.int32), 0) == 0) & (o_k == 0)
        o_p = tl.where(stands_in, tl.minimum(length, (number + 1) * TILE) - 1, o_p)
        m_r = m_r | stands_in
        b_w = tl.where(m_r, 1.0 / tl.sum(m_r.to(tl.float32), 0), 0.0)
        p_q = q + (first + o_p - prefix).to(tl.int64)[:, None] * s_qt + (i_kv * GROUP + o_r % GROUP)[:, None] * s_qh
        b_q = tl.load(p_q + tl.arange(0, DIM)[None, :], mask=m_r[:, None], other=0.0)

        near = tl.minimum((length + BLOCK - 1) // BLOCK, (number + 1) * TILE // BLOCK)
        p_table = tables + i_s * s_table
        p_columns = columns + i_kv * s_ch
        b_m = tl.full([ROWS], float("-inf"), tl.float32)
        b_l = tl.zeros([ROWS], tl.float32)
        b_rest = tl.zeros([ROWS], tl.float32)
        o_b = tl.arange(0, COLUMNS) // PER
        for i in range(0, near, NEW):
            b_s = _columns(b_q, p_columns, p_table, i, near, length, scale, o_p, s_cp, s_ct, BLOCK, DIM, COLUMNS, PER)
            b_new = tl.maximum(b_m, tl.max(b_s, 1))
            # A row that has seen nothing yet.
            b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_e = tl.exp2(b_s - b_safe[:, None])
            b_old = tl.exp2(b_m - b_safe)
            b_l = b_l * b_old + tl.sum(b_e, 1)
            b_rest = b_rest * b_old + tl.sum(tl.where((i + o_b >= sink)[None, :], b_e, 0.0), 1)
            b_m = b_new

        b_m = tl.where(b_m == float("-inf"), 0.0, b_m)
        b_l = tl.where(b_l == 0, 1.0, b_l)
        b_rest = tl.where(b_rest == 0, 1.0, b_rest)
        o_n = tl.arange(0, NEW)
        at = (i_kv * tiles + i_t).to(tl.int64) * blocks
        for i in range(0, near, NEW):
            b_s = _columns(b_q, p_columns, p_table, i, near, length, scale, o_p, s_cp, s_ct, BLOCK, DIM, COLUMNS, PER)
            # [ROWS, NEW]
            b_e = tl.sum(tl.reshape(tl.exp2(b_s - b_m[:, None]), (ROWS, NEW, PER)), 2)
            b_mass = tl.sum(b_e / b_l[:, None] * b_w[:, None], 0)
            # The sink's share of the rest has no bound, and its power may not fit float32.
            b_e = tl.where((i + o_n >= sink)[None, :], b_e / b_rest[:, None] * headroom, 0.0)
            b_need = _power(tl.sum(_power(b_e, peak) * b_w[:, None], 0), 1 / peak)
            m_n = i + o_n < near
            tl.store(mass + at + i + o_n, b_mass, mask=m_n)
            tl.store(need + at + i + o_n, b_need, mask=m_n)
