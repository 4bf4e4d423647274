"""Token-sparse latent attention on NVIDIA Hopper: the definition is that of the portable kernel of the same name.

A program a multiprocessor, an item 64 heads of a query. Four warps gather the rows of its tokens, two groups of four
attend them: each scores every second block of 64 tokens over all dimensions, and sums half of the latent dimensions of
all blocks, for which the groups hand each other their weights through shared memory. Blocks are loaded by halves, in
the order in which the groups are done with them (FlashMLA's schedule, 2 buffers of 64 tokens; here without running
maxima: weights are relative to the maximum of the query's first 64 tokens, and items that floats have no room for are
flagged and attended by the portable kernel).
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from sparse_kernels.gpu.checks import processors
from sparse_kernels.gpu.hopper.latent_consumer import BLOCK, HALF, HEADS, ROPE, consume
from sparse_kernels.gpu.hopper.latent_producer import produce
from sparse_kernels.gpu.launches import Launcher

OPTIONS = {"num_warps": 4, "maxnreg": 168}
_LOG2E = 1.4426950408889634
# Powers of 2 that the first maximum's weight lies under 1, and the least and the most that a row's weights may sum up
# to: below it the first block had no token, above it a weight may be infinite in the dtype.
RANGES = {
    torch.bfloat16: {"ROOM": 64.0, "LEAST": 2.0**-65, "MOST": 2.0**100},
    torch.float16: {"ROOM": 6.0, "LEAST": 2.0**-7, "MOST": 2.0**15},
}


# Each prompt has other numbers of items.
@gluon.jit(do_not_specialize=["items"])  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    q, q_rope, k, k_rope, tokens, out, lost,
    scale, count, heads, items, s_qt, s_qh, s_rt, s_rh, s_k, s_kr,
    ROOM: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr,
):  # fmt: skip
    """Barriers, buffers and roles; ``scale`` is that of scores in powers of 2."""
    DTYPE: gl.constexpr = q.dtype.element_ty
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    q_s = gl.allocate_shared_memory(DTYPE, [2, HEADS, HALF], SWIZZLED)
    # Half h of block b is 2 b + h.
    k_s = gl.allocate_shared_memory(DTYPE, [4, BLOCK, HALF], SWIZZLED)
    r_s = gl.allocate_shared_memory(DTYPE, [2, BLOCK, ROPE], SWIZZLED)
    p_s = gl.allocate_shared_memory(DTYPE, [2, HEADS, BLOCK], SWIZZLED)
    # What weights are relative to, and the sums of each group.
    row_s = gl.allocate_shared_memory(gl.float32, [3, HEADS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [4, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [4, 1], BARRIER)
    p_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    l_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    # Each thread of the producer tells of its own copies.
    mbarrier.init(q_full, count=128)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(4):
        mbarrier.init(k_full.index(i), count=128)
        mbarrier.init(k_empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(p_full.index(i), count=1)
        mbarrier.init(l_full.index(i), count=1)
    fence_async_shared()
    rings = (q_s, k_s, r_s, p_s, row_s, q_full, q_empty, k_full, k_empty, p_full, l_full)
    given = (
        q, q_rope, k, k_rope, tokens, out, lost,
        scale, count, heads, items, s_qt, s_qh, s_rt, s_rh, s_k, s_kr,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (produce, (rings, given)),
            (consume, (0, rings, given, ROOM, LEAST, MOST)),
            (consume, (1, rings, given, ROOM, LEAST, MOST)),
        ],
        [4, 4],
        [216, 216],
    )


def taken(x: torch.Tensor) -> bool:
    """Whether rows are copied as they lie: without gaps between dimensions, aligned to 16 bytes."""
    return x.stride(-1) == 1 and not any(stride % 8 for stride in x.stride()[:-1]) and x.data_ptr() % 16 == 0


def attend(
    q: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    tokens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Writes what :func:`sparse_kernels.gpu.token_sparse_attention.token_sparse_latent_attention` returns.

    Returns:
        int32, of each query and 64 heads whether they have to be attended with running maxima.
    """
    queries, heads, _ = q.shape
    items = queries * -(-heads // HEADS.value)
    lost = torch.empty(items, dtype=torch.int32, device=q.device)
    _launch(
        (min(items, processors(q.device)),), q, q_rope, latent, rope, tokens, out, lost,
        scale * _LOG2E, tokens.shape[1], heads, items,
        *q.stride()[:2], *q_rope.stride()[:2], latent.stride(0), rope.stride(0), **RANGES[q.dtype], **OPTIONS,
    )  # fmt: skip
    return lost


_launch = Launcher(kernel)
