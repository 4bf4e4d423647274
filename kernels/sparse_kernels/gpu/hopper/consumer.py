"""The consumers of the prefill kernel: warp groups of 64 query rows, two products and an online softmax a step."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparse_kernels.gpu.hopper.items import (
    AGAIN,
    AHEAD,
    HOPEFUL,
    STEP,
    advance,
    means_of,
    own_pages,
    posted_item,
    work_of,
)

# A row's maximum is let lag by as many powers of 2 before its sums are rescaled (FlashAttention-4's lazy rescaling).
_LAG = gl.constexpr(8.0)
# Without a running maximum a row's weights sum up to no more; values up to 2 to the 27th times it are finite.
_MOST = gl.constexpr(2.0**100)
# Their maximum is taken to lie so many powers of 2 above the first step's: floats and bfloat16 have as many below 1 as
# above it, and what is lost is under 2 to the -62nd of the largest.
_ROOM = gl.constexpr(64.0)
_LN2 = gl.constexpr(0.6931471805599453)


def _rescale_code(count: int) -> str:
    """Products of a lane's accumulators with its two rows' factors, or nothing where these are 1.

    Operands: ``count`` results; as many accumulators, tied to them; then ``count`` factors, of which the first is that
    of the lane's first row, and the third that of its second row.
    """
    # Tied operands are numbered too.
    low, high = 2 * count, 2 * count + 2
    products = " ".join(f"mul.f32 ${k}, ${k}, ${low if k % 4 < 2 else high};" for k in range(count))
    return (
        f"{{ .reg .pred p, q; setp.neu.f32 p, ${low}, 0f3F800000; setp.neu.f32 q, ${high}, 0f3F800000; "
        f"or.pred p, p, q; @!p bra KEEP; {products} KEEP: }}"
    )


def _rescale_operands(count: int) -> str:
    return ",".join(["=f"] * count + [str(k) for k in range(count)] + ["f"] * count)


_CODE_64, _OPERANDS_64 = gl.constexpr(_rescale_code(32)), gl.constexpr(_rescale_operands(32))
_CODE_128, _OPERANDS_128 = gl.constexpr(_rescale_code(64)), gl.constexpr(_rescale_operands(64))


@gluon.jit  # type: ignore[untyped-decorator]
def _rescale(b_acc, b_factor, DIM: gl.constexpr):  # type: ignore[no-untyped-def]
    """Accumulators times their rows' factors; a warp whose factors are all 1 branches past the products."""
    CODE: gl.constexpr = _CODE_64 if DIM == 64 else _CODE_128
    OPERANDS: gl.constexpr = _OPERANDS_64 if DIM == 64 else _OPERANDS_128
    return gl.inline_asm_elementwise(CODE, OPERANDS, [b_acc, b_factor], dtype=gl.float32, is_pure=True, pack=DIM // 2)


@gluon.jit
def _opaque(b_x):  # type: ignore[no-untyped-def]
    """The same, of which the compiler knows nothing."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [b_x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _lane_sums(b_p):  # type: ignore[no-untyped-def]
    """Sums of each lane's own columns, [64, 4]: no shuffle a step."""
    return gl.sum(gl.sum(gl.reshape(b_p, [64, 16, 4, 2]), 3), 1)


@gluon.jit  # type: ignore[untyped-decorator]
def consume(  # type: ignore[no-untyped-def]
    W: gl.constexpr, rings, rows,
    GROUP: gl.constexpr, DIM: gl.constexpr, UNIT: gl.constexpr, KS: gl.constexpr, VS: gl.constexpr,
    PASS: gl.constexpr,
):  # fmt: skip
    """Attends the items that are put up; ``scale`` is that of scores in powers of 2."""
    q_s, o_s, k_s, v_s, q_full, q_empty, k_full, k_empty, v_full, v_empty, posted, p_full, p_empty = rings
    o_desc, out, lse, s_ot, work, works, items, redone, block_counts, tiles, weights, weight_steps, scale, heads = rows
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    LO: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    LQ: gl.constexpr = gl.DotOperandLayout(0, L, 2)
    LP: gl.constexpr = gl.DotOperandLayout(0, LO, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, L)
    ROW_O: gl.constexpr = gl.SliceLayout(1, LO)
    COLUMN: gl.constexpr = gl.SliceLayout(0, L)
    L1: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    LS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    EVEN: gl.constexpr = GROUP % 2 == 0
    i_k = 0
    k_phase = 0
    i_v = 0
    v_phase = 0
    q_phase = 0
    p_slot = 0
    p_phase = 0
    b_zero = gl.zeros([64, 128], gl.float32, L)
    o_m = gl.arange(0, 64, ROW)
    o_n = gl.arange(0, 128, COLUMN)
    item = gl.program_id(0)
    i_kv, i_h, i_t, _, position, row, prefix, length = work_of(item, items, work, works, redone, GROUP, PASS)
    kept = gl.load(block_counts + i_kv * tiles + i_t)
    while item < items:
        pages = kept + own_pages(position, GROUP)
        beside, means = means_of(position, pages, UNIT)
        odd = gl.where(beside > 0, 0, pages % 2) if UNIT else pages % 2
        steps = (pages + 1) // 2 - 1
        single = gl.where(odd == 1, steps - 1, -1)
        limit = 128 - 64 * odd
        p_weights = weights + (i_kv * tiles + i_t).to(gl.int64) * weight_steps * STEP
        if EVEN:
            head = i_h + W
            first_row = row
            first = prefix - position
            last = length - position
        else:
            head = i_h
            first_row = row + W * 64
            first = prefix - position - W * 64
            last = length - position - W * 64
        mine = item
        item = posted_item(posted, p_full, p_empty, p_slot, p_phase, L1)
        p_slot, p_phase = advance(p_slot, p_phase, AHEAD)
        # Ahead of the loop, which hides its loads; where there is no other, any.
        following = item if PASS == AGAIN else gl.minimum(item, items - 1)
        i_kv, i_h, i_t, _, position, row, prefix, length = work_of(following, items, work, works, redone, GROUP, PASS)
        kept = gl.load(block_counts + i_kv * tiles + i_t)

        mbarrier.wait(q_full, q_phase)
        q_phase ^= 1
        b_q = q_s.index(W).load(LQ)
        fence_async_shared()
        mbarrier.arrive(q_empty, count=1)
        b_acc = gl.zeros([64, DIM], gl.float32, LO)
        mbarrier.wait(k_full.index(i_k), k_phase)
        b_s = warpgroup_mma(b_q, k_s.index(i_k).permute((1, 0)), b_zero, use_acc=False, is_async=True)
        b_s = warpgroup_mma_wait(0, deps=(b_s,))
        mbarrier.arrive(k_empty.index(i_k), count=1)
        i_k, k_phase = advance(i_k, k_phase, KS)
        # The first row that sees a column: on the diagonal its own, all of an earlier page, none of one that is there
        # twice or that comes later.
        if EVEN:
            o_low = gl.where(o_n < 64, o_n, gl.where(odd == 0, 0, 64))
        elif W == 0:
            o_low = gl.where(o_n < 64, 64, o_n - 64)
        else:
            o_low = gl.where(o_n < 64, o_n, 0)
        b_s = gl.where(o_m[:, None] >= o_low[None, :], b_s, float("-inf"))
        b_m = gl.max(b_s, 1) * scale
        if PASS == HOPEFUL:
            b_m += _ROOM
        b_e = gl.exp2(b_s * scale - b_m[:, None])
        b_p = gl.convert_layout(b_e.to(q_s.dtype), LP)
        b_l = _lane_sums(b_e)
        LANE: gl.constexpr = gl.SliceLayout(1, b_l.type.layout)
        b_factor = gl.full([64], 1.0, gl.float32, ROW)
        if UNIT:
            biased = gl.where(beside > 0, steps - 1, steps)
            b_w = gl.load(p_weights + o_n - beside, mask=(o_n >= beside) & (beside + means > 0), other=0.0)
        for i in range(steps + means):
            mbarrier.wait(k_full.index(i_k), k_phase)
            b_next = warpgroup_mma(b_q, k_s.index(i_k).permute((1, 0)), b_zero, use_acc=False, is_async=True)
            if PASS != HOPEFUL:
                b_acc = _rescale(b_acc, gl.convert_layout(b_factor, ROW_O)[:, None] + gl.zeros_like(b_acc), DIM)
            mbarrier.wait(v_full.index(i_v), v_phase)
            b_sum = warpgroup_mma(b_p, v_s.index(i_v), b_acc, is_async=True)
            b_s = warpgroup_mma_wait(1, deps=(b_next,))
            mbarrier.arrive(k_empty.index(i_k), count=1)
            i_k, k_phase = advance(i_k, k_phase, KS)
            if not EVEN:  # noqa: SIM102
                if i == single:
                    # The last page once more; a constant limit would be folded into the products of every step.
                    b_s = gl.where((o_n < limit)[None, :], b_s, float("-inf"))
            if UNIT:  # noqa: SIM102
                if i >= biased:
                    b_s = b_s + (b_w.to(gl.float32) * (1.0 / scale))[None, :]
                    at = gl.minimum(beside + (i - steps + 1) * STEP, (weight_steps - 1) * STEP)
                    b_w = gl.load(p_weights + at + o_n)
            if PASS == HOPEFUL:
                b_e = gl.exp2(b_s * scale - b_m[:, None])
                b_l = b_l + _lane_sums(b_e)
            else:
                b_new = gl.maximum(b_m, gl.max(b_s, 1) * scale)
                b_new = gl.where(b_new > b_m + _LAG, b_new, b_m)
                b_factor = gl.exp2(b_m - b_new)
                b_m = b_new
                b_e = gl.exp2(b_s * scale - b_m[:, None])
                b_l = b_l * gl.convert_layout(b_factor, LANE)[:, None] + _lane_sums(b_e)
            b_next_p = gl.convert_layout(b_e.to(q_s.dtype), LP)
            # A branch, or ptxas moves the wait below before the exponentials.
            mbarrier.wait(v_full.index(i_v), v_phase)
            # No half-precision tensor as a dependency: it would be repacked at every step.
            b_acc, b_l = warpgroup_mma_wait(0, deps=(b_sum, b_l))
            mbarrier.arrive(v_empty.index(i_v), count=1)
            i_v, v_phase = advance(i_v, v_phase, VS)
            b_p = b_next_p
        if PASS != HOPEFUL:
            # Not the product of the loop, or LLVM hoists both above its branch, and the tensor cores wait for them.
            b_acc = b_acc * gl.convert_layout(_opaque(b_factor), ROW_O)[:, None]
        mbarrier.wait(v_full.index(i_v), v_phase)
        b_sum = warpgroup_mma(b_p, v_s.index(i_v), b_acc, is_async=True)
        b_acc = warpgroup_mma_wait(0, deps=(b_sum,))
        mbarrier.arrive(v_empty.index(i_v), count=1)
        i_v, v_phase = advance(i_v, v_phase, VS)

        b_l = gl.convert_layout(gl.sum(b_l, 1), ROW)
        b_out = (b_acc * gl.convert_layout(1.0 / b_l, ROW_O)[:, None]).to(q_s.dtype)
        tma.store_wait(0)
        o_s.index(W).store(b_out)
        fence_async_shared()
        if (first <= 0) & (last >= 64):
            tma.async_copy_shared_to_global(o_desc, [first_row, head * DIM], o_s.index(W))
        else:
            # Other rows of the copy would be a neighbour's.
            o_r = gl.arange(0, 64, gl.SliceLayout(1, LS))
            o_d = gl.arange(0, DIM, gl.SliceLayout(0, LS))
            p_out = out + (first_row + o_r).to(gl.int64)[:, None] * s_ot + (head * DIM + o_d)[None, :]
            m_r = (o_r >= first) & (o_r < last)
            gl.store(p_out, o_s.index(W).load(LS), mask=m_r[:, None])
        if PASS == HOPEFUL:
            # Sums of weights relative to the first step's maximum: too large, or infinite, or not a number.
            lost = (o_m >= first) & (o_m < last) & ((b_l < _MOST) == 0)
            if gl.sum(lost.to(gl.int32), 0) > 0:
                gl.store(redone + 1 + gl.atomic_add(redone, 1), mine)
        p_lse = lse + (first_row + o_m) * heads + head
        gl.store(p_lse, (b_m + gl.log2(b_l)) * _LN2, mask=(o_m >= first) & (o_m < last))
    tma.store_wait(0)
