"""The producer of latent attention: four warps gather the rows of a query's tokens, 16 bytes a lane and copy."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sparse_kernels.gpu.hopper.latent_consumer import BLOCK, HALF, HEADS, ROPE


@gluon.jit
def _ids(tokens, at, count):  # type: ignore[no-untyped-def]
    """Tokens of a block; -1 past the last."""
    LB: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_t = at + gl.arange(0, BLOCK, gl.SliceLayout(1, LB))
    return gl.load(tokens + o_t, mask=o_t < count, other=-1)


@gluon.jit
def _copy(to, rows, columns, valid):  # type: ignore[no-untyped-def]
    """Starts the copy of rows, of zeros where they are not valid."""
    async_copy.async_copy_global_to_shared(to, rows[:, None] + columns[None, :], mask=valid[:, None])


@gluon.jit
def produce(rings, given):  # type: ignore[no-untyped-def]
    """Brings an item's queries, and the halves of its blocks in the order in which they become free."""
    q_s, k_s, r_s, _, _, q_full, q_empty, k_full, k_empty, _, _ = rings
    q, _, k, k_rope, tokens, _, _, _, count, heads, items, s_qt, s_qh, _, _, s_k, s_kr = given
    LB: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_m = gl.arange(0, HEADS, gl.SliceLayout(1, LB))
    o_d = gl.arange(0, HALF, gl.SliceLayout(0, LB))
    o_p = gl.arange(0, ROPE, gl.SliceLayout(0, LB))
    groups = (heads + HEADS - 1) // HEADS
    pairs = (count + 2 * BLOCK - 1) // (2 * BLOCK)
    phase = 1
    q_phase = 1
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        i_t = (item // groups).to(gl.int64)
        first = item % groups * HEADS
        p_tokens = tokens + i_t * count
        b_0 = _ids(p_tokens, 0, count)
        b_1 = _ids(p_tokens, BLOCK, count)
        mbarrier.wait(q_empty, q_phase)
        q_phase ^= 1
        p_q = q + i_t * s_qt + (first + o_m).to(gl.int64) * s_qh
        _copy(q_s.index(0), p_q, o_d, first + o_m < heads)
        _copy(q_s.index(1), p_q + HALF, o_d, first + o_m < heads)
        async_copy.mbarrier_arrive(q_full, increment_count=False)
        for i in range(pairs):
            valid_0 = b_0 >= 0
            valid_1 = b_1 >= 0
            row_0 = gl.maximum(b_0, 0).to(gl.int64)
            row_1 = gl.maximum(b_1, 0).to(gl.int64)
            b_0 = _ids(p_tokens, (2 * i + 2) * BLOCK, count)
            b_1 = _ids(p_tokens, (2 * i + 3) * BLOCK, count)
            p_0 = k + row_0 * s_k
            p_1 = k + row_1 * s_k
            mbarrier.wait(k_empty.index(0), phase)
            _copy(r_s.index(0), k_rope + row_0 * s_kr, o_p, valid_0)
            _copy(k_s.index(0), p_0, o_d, valid_0)
            async_copy.mbarrier_arrive(k_full.index(0), increment_count=False)
            mbarrier.wait(k_empty.index(1), phase)
            _copy(k_s.index(1), p_0 + HALF, o_d, valid_0)
            async_copy.mbarrier_arrive(k_full.index(1), increment_count=False)
            mbarrier.wait(k_empty.index(3), phase)
            _copy(r_s.index(1), k_rope + row_1 * s_kr, o_p, valid_1)
            _copy(k_s.index(3), p_1 + HALF, o_d, valid_1)
            async_copy.mbarrier_arrive(k_full.index(3), increment_count=False)
            mbarrier.wait(k_empty.index(2), phase)
            _copy(k_s.index(2), p_1, o_d, valid_1)
            async_copy.mbarrier_arrive(k_full.index(2), increment_count=False)
            phase ^= 1
