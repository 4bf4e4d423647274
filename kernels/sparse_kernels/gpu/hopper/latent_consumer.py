"""The consumers of latent attention: each scores every second block of tokens, and sums half of all values."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Query heads of an item, tokens of a block, latent dimensions that a group sums, rotary dimensions.
HEADS = gl.constexpr(64)
BLOCK = gl.constexpr(64)
HALF = gl.constexpr(256)
ROPE = gl.constexpr(64)


@gluon.jit
def _lane_sums(b_p):  # type: ignore[no-untyped-def]
    """Sums of each lane's own columns, [64, 4]: no shuffle a step."""
    return gl.sum(gl.sum(gl.reshape(b_p, [64, 8, 4, 2]), 3), 1)


@gluon.jit  # type: ignore[untyped-decorator]
def consume(W: gl.constexpr, rings, given, ROOM: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr):  # type: ignore[no-untyped-def]
    """Attends the program's items; group ``W`` scores blocks ``2 i + W`` and sums latent dimensions from ``256 W``.

    The first group leads: weights of its block are with the second one before that has any of its own.
    """
    q_s, k_s, r_s, p_s, row_s, q_full, q_empty, k_full, k_empty, p_full, l_full = rings
    _, q_rope, _, _, tokens, out, lost, scale, count, heads, items, _, _, s_rt, s_rh, _, _ = given
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    LO: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    LQ: gl.constexpr = gl.DotOperandLayout(0, L, 2)
    LP: gl.constexpr = gl.DotOperandLayout(0, LO, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, L)
    ROW_O: gl.constexpr = gl.SliceLayout(1, LO)
    COLUMN: gl.constexpr = gl.SliceLayout(0, L)
    OTHER: gl.constexpr = 1 - W
    o_m = gl.arange(0, HEADS, ROW)
    o_n = gl.arange(0, BLOCK, COLUMN)
    # Each warp has them all.
    o_i = gl.arange(0, BLOCK, gl.BlockedLayout([2], [32], [4], [0]))
    o_q = gl.arange(0, HEADS, gl.SliceLayout(1, LQ))
    o_p = gl.arange(0, ROPE, gl.SliceLayout(0, LQ))
    o_h = gl.arange(0, HEADS, ROW_O)
    o_d = W * HALF + gl.arange(0, HALF, gl.SliceLayout(0, LO))
    b_zero = gl.zeros([HEADS, BLOCK], gl.float32, L)
    groups = (heads + HEADS - 1) // HEADS
    pairs = (count + 2 * BLOCK - 1) // (2 * BLOCK)
    phase = 0
    i_phase = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        i_t = (item // groups).to(gl.int64)
        first = item % groups * HEADS
        p_rope = q_rope + i_t * s_rt + (first + o_q).to(gl.int64)[:, None] * s_rh + o_p[None, :]
        b_rope = gl.load(p_rope, mask=(first + o_q < heads)[:, None], other=0.0)
        p_tokens = tokens + i_t * count
        b_acc = gl.zeros([HEADS, HALF], gl.float32, LO)
        b_l = _lane_sums(b_zero)
        mbarrier.wait(q_full, i_phase)
        for i in range(pairs):
            # Zero, unknown to the compiler: it would keep the address of each product in registers of its own.
            z = i >> 20
            at = (2 * i + W) * BLOCK
            least = gl.min(gl.load(p_tokens + at + o_i, mask=at + o_i < count, other=-1), 0)
            # Scores, over the half that comes first, which is the group's own.
            mbarrier.wait(k_full.index(3 * W), phase)
            fence_async_shared()
            b_s = warpgroup_mma(b_rope, r_s.index(z + W).permute((1, 0)), b_zero, use_acc=False, is_async=True)
            b_s = warpgroup_mma(q_s.index(z + W), k_s.index(z + 3 * W).permute((1, 0)), b_s, is_async=True)
            mbarrier.wait(k_full.index(2 * W + OTHER), phase)
            fence_async_shared()
            b_s = warpgroup_mma(q_s.index(z + OTHER), k_s.index(z + 2 * W + OTHER).permute((1, 0)), b_s, is_async=True)
            b_s = warpgroup_mma_wait(0, deps=(b_s,))
            if i + 1 == pairs:
                mbarrier.arrive(q_empty, count=1)
            if least < 0:
                valid = gl.load(p_tokens + at + o_n, mask=at + o_n < count, other=-1) >= 0
                b_s = gl.where(valid[None, :], b_s, float("-inf"))
            if W == 0:
                if i == 0:
                    # Weights are relative to the maximum of the first block.
                    b_m = gl.max(b_s, 1) * scale
                    row_s.index(0).store(gl.where(b_m == float("-inf"), 0.0, b_m) + ROOM)
            else:
                mbarrier.wait(p_full.index(0), phase)
                b_acc = warpgroup_mma(p_s.index(z + 0), k_s.index(z + W), b_acc, is_async=True)
            b_base = row_s.index(0).load(ROW)
            b_e = gl.exp2(b_s * scale - b_base[:, None])
            b_l = b_l + _lane_sums(b_e)
            b_p = b_e.to(q_s.dtype)
            p_s.index(z + W).store(b_p)
            fence_async_shared()
            mbarrier.arrive(p_full.index(W), count=1)
            if W == 1:
                b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
                mbarrier.arrive(k_empty.index(W), count=1)
            b_acc = warpgroup_mma(gl.convert_layout(b_p, LP), k_s.index(z + 3 * W), b_acc, is_async=True)
            if W == 0:
                b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
                mbarrier.arrive(k_empty.index(0), count=1)
                mbarrier.wait(p_full.index(1), phase)
                b_acc = warpgroup_mma(p_s.index(z + 1), k_s.index(z + 2), b_acc, is_async=True)
                b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
                mbarrier.arrive(k_empty.index(2), count=1)
            else:
                b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
                mbarrier.arrive(k_empty.index(3), count=1)
            phase ^= 1
        b_sum = gl.convert_layout(gl.sum(b_l, 1), ROW)
        row_s.index(1 + W).store(b_sum)
        mbarrier.arrive(l_full.index(W), count=1)
        mbarrier.wait(l_full.index(OTHER), i_phase)
        b_sum = b_sum + row_s.index(1 + OTHER).load(ROW)
        b_scale = 1.0 / gl.where(b_sum == 0.0, 1.0, b_sum)
        b_out = b_acc * gl.convert_layout(b_scale, ROW_O)[:, None]
        p_out = out + ((i_t * heads + first + o_h) * (2 * HALF))[:, None] + o_d[None, :]
        gl.store(p_out, b_out.to(out.dtype.element_ty), mask=(first + o_h < heads)[:, None])
        if W == 0:
            # Sums that floats or weights have no room for, or that are not a number.
            b_lost = (first + o_m < heads) & ((b_sum < MOST) & (b_sum >= LEAST) == 0)
            gl.store(lost + item, gl.max(b_lost.to(gl.int32), 0))
        i_phase ^= 1
