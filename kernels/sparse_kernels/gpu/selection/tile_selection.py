"""Which blocks query tiles attend, in one pass over sub-page means: scores, rule, index, coverage, correction weights.

A persistent program takes some neighbouring tiles of one KV head at a time. It scores their sampled rows against the
columns of all blocks before them once, and keeps each row's weights by block, relative to the row's maximum so far, in
scratch of its own. When the maxima and denominators are known, shares of rows become needs and masses of tiles by a
small product, and the rule is applied to each tile's needs in registers.

Weights are kept in float16 times 2 to the 13th: what that loses, below 1e-11 of a row's strongest column, no sum of
float32 shows; top_k ranks whatever is left and takes bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparse_kernels.gpu.selection.ordered_means import column_block
from sparse_kernels.gpu.selection.rules import ranked


@triton.jit  # type: ignore[untyped-decorator]
def _by_block(b_e, R: tl.constexpr, COLUMNS: tl.constexpr, SUBS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of the columns of each block, ``[R, COLUMNS / SUBS]``, in the order of blocks; see ``column_block``."""
    HALF: tl.constexpr = SUBS // 2
    b_x = tl.reshape(b_e, (R, COLUMNS // (8 * HALF), HALF, 4, 2))
    b_x = tl.sum(tl.sum(b_x, 4), 2)
    return tl.reshape(tl.permute(b_x, (0, 2, 1)), (R, COLUMNS // SUBS))


@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    b_q, columns, at,
    DIM: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows against the columns of one product."""
    if TMA:
        b_c = columns.load([at, 0])
    else:
        o_c = at.to(tl.int64) + tl.arange(0, COLUMNS)
        b_c = tl.load(columns + o_c[:, None] * DIM + tl.arange(0, DIM)[None, :])
    return tl.dot(b_q, tl.trans(b_c), input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _keep_weights(  # type: ignore[no-untyped-def]
    b_s, scale, b_m, b_l, p_scratch, p_maxima, o_r,
    R: tl.constexpr, COLUMNS: tl.constexpr, SUBS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Weights by block of one product into scratch; the maximum so far, less ``SHIFT``, and the denominator."""
    BLOCKS: tl.constexpr = COLUMNS // SUBS
    b_new = tl.maximum(b_m, tl.max(b_s, 1) * scale - SHIFT)
    b_w = _by_block(tl.exp2(b_s * scale - b_new[:, None]), R, COLUMNS, SUBS)
    b_l = b_l * tl.exp2(b_m - b_new) + tl.sum(b_w, 1)
    tl.store(p_scratch + o_r[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :], b_w.to(p_scratch.dtype.element_ty))
    tl.store(p_maxima + o_r, b_new)
    return b_new, b_l


@triton.jit  # type: ignore[untyped-decorator]
def _power(b_x, exponent, SQUARES: tl.constexpr):  # type: ignore[no-untyped-def]
    """A power of what is not negative."""
    if SQUARES < 0:
        return tl.where(b_x > 0, tl.exp2(exponent * tl.log2(tl.maximum(b_x, 2e-38))), 0.0)
    for _ in tl.static_range(SQUARES):
        b_x = b_x * b_x
    return b_x


# The length of a batch does not compile a kernel of its own.
@triton.jit(
    do_not_specialize=(
        "sink",
        "window",
        "dense_last",
        "n_items",
        "kv_heads",
        "tiles",
        "n_steps",
        "most_steps",
        "widest",
    )
)  # type: ignore[untyped-decorator]
def select_tile_blocks(  # type: ignore[no-untyped-def]
    q, columns, scratch, maxima, needs,
    lengths, starts, totals, dense, tile_sequence, tile_number, items, first_steps, thresholds,
    index_starts, counts, listed, coverage, weights,
    scale, peak, headroom_bits, sink, window, dense_last,
    n_items, kv_heads, tiles, n_steps, most_steps, widest, s_qt, s_qh,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, SAMPLED: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr, SUBS: tl.constexpr,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, RULE: tl.constexpr, SQUARES: tl.constexpr,
    HALF: tl.constexpr, DENSE: tl.constexpr, TMA: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some tiles of one KV head at a time; the arguments are those of :func:`select_tiles`, and strides."""
    BLOCKS: tl.constexpr = COLUMNS // SUBS
    R: tl.constexpr = ROWS * TILES
    # The most that float16 holds of all columns of a block, and of the factors in the small product.
    SHIFT: tl.constexpr = 14 if SUBS == 2 else (13 if SUBS == 4 else 12)
    LIFT: tl.constexpr = 15 + SHIFT
    slot = tl.program_id(0)
    o_r = tl.arange(0, R)
    o_d = tl.arange(0, DIM)
    o_c = tl.arange(0, COLUMNS)
    o_block, o_sub = column_block(o_c, COLUMNS, SUBS)
    o_end = o_block * BLOCK + (o_sub + 1) * (BLOCK // SUBS)
    o_n = tl.arange(0, BLOCKS)
    o_w = tl.arange(0, WIDTH)
    i_2 = o_r // ROWS
    o_k = o_r % ROWS // GROUP
    p_scratch = scratch + slot.to(tl.int64) * most_steps * (R * BLOCKS)
    p_maxima = maxima + slot.to(tl.int64) * most_steps * R
    p_needs = needs + slot.to(tl.int64) * (2 * TILES * WIDTH)
    for item in range(slot, n_items * kv_heads, tl.num_programs(0)):
        i_kv = item % kv_heads
        i_t = tl.load(items + item // kv_heads * 2)
        together = tl.load(items + item // kv_heads * 2 + 1)
        i_s = tl.load(tile_sequence + i_t)
        number = tl.load(tile_number + i_t)
        length = tl.load(lengths + i_s)
        start = tl.load(starts + i_s)
        prefix = length - (tl.load(starts + i_s + 1) - start)
        total = tl.load(totals + i_s).to(tl.int32)
        last_tile = (total - 1) // TILE
        there = (length + BLOCK - 1) // BLOCK
        near = tl.minimum(there, (number + together) * TILE // BLOCK)
        # Nothing is to be chosen where everything is kept anyway.
        chosen = tl.maximum((number + together - 1) * TILE - window, 0) // BLOCK > sink
        chosen = chosen & (number <= last_tile - dense_last)
        if DENSE:
            all_kept = tl.load(dense + i_s) != 0
            chosen = chosen & (all_kept == 0)
        if chosen:
            # Rows are counted from a tile's end: its last row sees the most keys.
            o_p = (number + i_2 + 1) * TILE - 1 - STRIDE * (SAMPLED - 1 - o_k)
            m_t = i_2 < together
            m_r = (o_p >= prefix) & (o_p < length) & (o_k < SAMPLED) & m_t
            b_seen = tl.sum(tl.reshape(m_r.to(tl.int32), (TILES, ROWS)), 1)
            b_seen = tl.reshape(tl.broadcast_to(b_seen[:, None], (TILES, ROWS)), (R,))
            # A tile cut short by the end of the prompt may have none of them: its last row stands in.
            stands_in = (b_seen == 0) & (o_k == 0) & m_t
            o_p = tl.where(stands_in, tl.minimum(length, (number + i_2 + 1) * TILE) - 1, o_p)
            m_r = m_r | stands_in
            b_weight = tl.where(m_r, 1.0 / tl.where(b_seen == 0, GROUP, b_seen).to(tl.float32), 0.0)
            p_q = q + (start + o_p - prefix).to(tl.int64)[:, None] * s_qt
            p_q += (i_kv * GROUP + o_r % ROWS % GROUP)[:, None] * s_qh + o_d[None, :]
            # [R, DIM]
            b_q = tl.load(p_q, mask=m_r[:, None], other=0.0)

            at = (i_kv * n_steps + tl.load(first_steps + i_s)) * COLUMNS
            steps = (near + BLOCKS - 1) // BLOCKS
            with_sink = tl.minimum((sink + BLOCKS - 1) // BLOCKS, steps)
            whole = tl.maximum(number * TILE // BLOCK // BLOCKS, with_sink)
            b_m = tl.full([R], -1e30, tl.float32)
            b_l = tl.zeros([R], tl.float32)
            b_sink_m = tl.full([R], -1e30, tl.float32)
            b_sink_l = tl.zeros([R], tl.float32)
            # The sink apart: rows that attend mostly the sink would lose what else they attend.
            for j in tl.range(0, with_sink, num_stages=1):
                b_s = _scores(b_q, columns, at + j * COLUMNS, DIM, COLUMNS, TMA)
                m_s = j * (BLOCKS * BLOCK) + o_end[None, :] <= o_p[:, None] + 1
                m_sink = (j * BLOCKS + o_block < sink)[None, :]
                b_x = tl.where(m_s & m_sink, b_s * scale, float("-inf"))
                b_new = tl.maximum(b_sink_m, tl.max(b_x, 1))
                b_sink_l = b_sink_l * tl.exp2(b_sink_m - b_new) + tl.sum(tl.exp2(b_x - b_new[:, None]), 1)
                b_sink_m = b_new
                b_s = tl.where(m_s & (m_sink == 0), b_s, float("-inf"))
                b_m, b_l = _keep_weights(
                    b_s, scale, b_m, b_l, p_scratch + j * (R * BLOCKS), p_maxima + j * R, o_r, R, COLUMNS, SUBS, SHIFT
                )
            for j in tl.range(with_sink, whole, num_stages=STAGES):
                b_s = _scores(b_q, columns, at + j * COLUMNS, DIM, COLUMNS, TMA)
                b_m, b_l = _keep_weights(
                    b_s, scale, b_m, b_l, p_scratch + j * (R * BLOCKS), p_maxima + j * R, o_r, R, COLUMNS, SUBS, SHIFT
                )
            for j in tl.range(whole, steps, num_stages=1):
                b_s = _scores(b_q, columns, at + j * COLUMNS, DIM, COLUMNS, TMA)
                b_s = tl.where(j * (BLOCKS * BLOCK) + o_end[None, :] <= o_p[:, None] + 1, b_s, float("-inf"))
                b_m, b_l = _keep_weights(
                    b_s, scale, b_m, b_l, p_scratch + j * (R * BLOCKS), p_maxima + j * R, o_r, R, COLUMNS, SUBS, SHIFT
                )

            # What each row's weights count for: shares of the mass that is not on the sink, and of all.
            b_all = b_l + b_sink_l * tl.exp2(tl.minimum(b_sink_m - b_m, 100.0))
            m_l = m_r & (b_l > 0)
            b_mass = tl.where(m_l, b_weight / tl.maximum(b_all, 1e-30), 0.0)
            if SQUARES == 0:
                b_need = tl.where(m_l, b_weight / tl.maximum(b_l, 1e-30), 0.0)
            else:
                # The rows of a tile weigh alike, and what all of its needs have in common no rule sees.
                b_need = tl.where(m_l, 1.0, 0.0)
                b_base = tl.where(m_l, headroom_bits - b_m - tl.log2(tl.maximum(b_l, 1e-30)), float("-inf"))
            tl.debug_barrier()
            o_f = tl.arange(0, 16)
            m_need = (o_f // 2)[:, None] == i_2[None, :]
            m_mass = m_need & (o_f % 2 == 1)[:, None]
            m_need = m_need & (o_f % 2 == 0)[:, None]
            for j in tl.range(0, steps, num_stages=STAGES):
                # [R, BLOCKS]
                b_e = tl.load(p_scratch + j * (R * BLOCKS) + o_r[:, None] * BLOCKS + o_n[None, :], cache_modifier=".cg")
                b_x = tl.load(p_maxima + j * R + o_r, cache_modifier=".cg")
                b_f = tl.exp2(b_x - b_m + LIFT)
                b_a = tl.where(m_mass, (b_f * b_mass)[None, :], 0.0)
                if SQUARES == 0:
                    b_a = tl.where(m_need, (b_f * b_need)[None, :], b_a)
                # [16, BLOCKS]: need and mass of each tile.
                b_n = tl.dot(b_a.to(b_e.dtype), b_e, input_precision="ieee") * (1.0 / (1 << LIFT))
                if SQUARES != 0:
                    b_p = _power(b_e.to(tl.float32) * tl.exp2(b_x + b_base)[:, None], peak, SQUARES)
                    b_a = tl.where(m_need, b_need[None, :], 0.0)
                    if HALF:
                        # Below 2 to the 112th and above the least normal number: bfloat16 holds the same range.
                        b_n += tl.dot(b_a.to(tl.bfloat16), b_p.to(tl.bfloat16))
                    else:
                        b_n += tl.dot(b_a, b_p, input_precision="ieee")
                p_n = p_needs + o_f[:, None] * WIDTH + (j * BLOCKS + o_n)[None, :]
                tl.store(p_n, b_n, mask=(o_f < 2 * TILES)[:, None] & (j * BLOCKS + o_n < WIDTH)[None, :])
            tl.debug_barrier()

        threshold = tl.load(thresholds + i_kv)
        for i in range(together):
            row = i_kv * tiles + i_t + i
            first = (number + i) * TILE
            before = first // BLOCK
            n_near = tl.minimum(there, (first + TILE) // BLOCK)
            m_before = o_w < before
            m_x = (o_w < n_near) & (o_w >= sink) & chosen
            b_x = tl.load(p_needs + 2 * i * WIDTH + o_w, mask=m_x, other=0.0, cache_modifier=".cg")
            b_y = tl.load(p_needs + (2 * i + 1) * WIDTH + o_w, mask=m_x & m_before, other=0.0, cache_modifier=".cg")
            if SQUARES != 0:
                b_x = tl.where(b_x > 0, tl.exp2(tl.log2(tl.maximum(b_x, 2e-38)) / peak), 0.0)
            m_forced = (o_w < sink) | (o_w >= tl.maximum(first - window, 0) // BLOCK)
            m_forced = m_forced | (number + i > last_tile - dense_last)
            if DENSE:
                m_forced = m_forced | all_kept
            if RULE == 0:
                m_kept = b_x >= threshold * tl.max(b_x, 0)
                m_kept = (m_kept | m_forced) & m_before
                o_at = tl.cumsum(m_kept.to(tl.int32), 0)
            else:
                m_free = m_before & (m_forced == 0)
                prompt_blocks = (total + BLOCK - 1) // BLOCK
                m_sure, m_level, left = ranked(b_x, m_free, threshold, prompt_blocks, RULE == 1, TOGETHER)
                m_level = m_level & m_free
                m_sure = ((m_sure & m_free) | m_forced) & m_before
                # Both counts in one sum: there are fewer than 2 to the 15th blocks.
                b_both = tl.cumsum(m_level.to(tl.int32) + (m_sure.to(tl.int32) << 16), 0)
                b_rank = b_both & 0xFFFF
                m_kept = m_sure | (m_level & (b_rank <= left))
                o_at = (b_both >> 16) + tl.minimum(b_rank, left)
            m_pruned = m_before & (m_kept == 0)
            tl.store(listed + tl.load(index_starts + row) + o_at - 1, o_w, mask=m_kept)
            tl.store(counts + row, tl.max(o_at, 0))
            tl.store(coverage + row, 1.0 - tl.sum(tl.where(m_pruned, b_y, 0.0), 0))
            if UNIT > 0:
                o_u = tl.arange(0, WIDTH // UNIT)
                b_gone = tl.sum(tl.reshape(m_pruned.to(tl.float32), (WIDTH // UNIT, UNIT)), 1)
                # Only units that lie wholly before the tile: of another keys of later rows would be seen.
                m_u = (b_gone > 0) & ((o_u + 1) * UNIT <= before)
                b_u = tl.where(m_u, tl.log2(tl.maximum(b_gone, 1.0) * BLOCK), float("-inf"))
                p_u = weights + row.to(tl.int64) * (widest // 128 * 128) + o_u
                tl.store(p_u, b_u.to(weights.dtype.element_ty), mask=o_u < widest)
        tl.debug_barrier()
