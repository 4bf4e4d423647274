"""Block-sparse prefill on NVIDIA Hopper: the definition is that of the portable kernel of the same name.

A program a multiprocessor: one warp copies queries and keys, one values, and two groups of four warps attend 64 rows
each, of two query heads that share pages. Programs draw items from a counter, the longest first
(FlashAttention-3, arXiv 2407.08608; lazy rescaling as in FlashAttention-4).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from sparse_kernels.gpu.checks import processors
from sparse_kernels.gpu.hopper.consumer import consume
from sparse_kernels.gpu.hopper.items import AGAIN, CAREFUL, HOPEFUL
from sparse_kernels.gpu.hopper.producer import produce
from sparse_kernels.gpu.launches import Launcher, Rows, current_stream
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import WIDTH, Corrections

_TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
_LOG2E = 1.4426950408889634
PAGE, TILE = 64, 128
# Slots of 128 keys: what fits beside queries and outputs.
STAGES = {64: (4, 4), 128: (2, 3)}
LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
OPTIONS = {"num_warps": 4, "maxnreg": 168}


class _Counts(NamedTuple):
    """What programs count in.

    Attributes:
        drawn: int32 ``[1]``, items.
        redone: int32, how many items are to be done again, and then these; either warp group may list one.
    """

    drawn: torch.Tensor
    redone: torch.Tensor

    @classmethod
    def zero(cls, device: torch.device, items: int) -> _Counts:
        """Room for so many items."""
        return cls(*(torch.zeros(count, dtype=torch.int32, device=device) for count in (1, 1 + 2 * items)))


# Of each device and stream.
_kept: dict[tuple[torch.device, int], _Counts] = {}


# Of these, no value has a kernel of its own: each prompt has others.
@gluon.jit(do_not_specialize=["works", "items", "tiles", "s_table", "weight_steps"])  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    q_desc, k_desc, v_desc, mk_desc, mv_desc, o_desc, out, lse, counter, redone,
    work, tables, block_starts, block_counts, blocks, offsets, weights,
    scale, works, items, tiles, heads, s_table, s_ot, weight_steps,
    GROUP: gl.constexpr, DIM: gl.constexpr, UNIT: gl.constexpr, KS: gl.constexpr, VS: gl.constexpr,
    PASS: gl.constexpr,
):  # fmt: skip
    """Barriers, buffers and roles; ``scale`` is that of scores in powers of 2."""
    DTYPE: gl.constexpr = q_desc.dtype
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_s = gl.allocate_shared_memory(DTYPE, [2, 64, DIM], q_desc.layout)
    o_s = gl.allocate_shared_memory(DTYPE, [2, 64, DIM], o_desc.layout)
    k_s = gl.allocate_shared_memory(DTYPE, [KS, 128, DIM], k_desc.layout)
    v_s = gl.allocate_shared_memory(DTYPE, [VS, 128, DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    cleared = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [KS, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [KS, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [VS, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [VS, 1], BARRIER)
    posted = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    p_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    p_empty = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    mbarrier.init(cleared, count=1)
    for i in gl.static_range(2):
        mbarrier.init(p_full.index(i), count=1)
        mbarrier.init(p_empty.index(i), count=3)
    for i in gl.static_range(KS):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
    for i in gl.static_range(VS):
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    if PASS == AGAIN:
        items = gl.load(redone)
    rings = (q_s, o_s, k_s, v_s, q_full, q_empty, k_full, k_empty, v_full, v_empty, posted, p_full, p_empty)
    rows = (
        o_desc,
        out,
        lse,
        s_ot,
        work,
        works,
        items,
        redone,
        block_counts,
        tiles,
        weights,
        weight_steps,
        scale,
        heads,
    )
    keys = (k_desc, mk_desc, k_s, k_full, k_empty)
    values = (v_desc, mv_desc, v_s, v_full, v_empty)
    shared = (cleared, q_desc, q_s, q_full, q_empty, counter, posted, p_full, p_empty)
    pages = (work, works, items, redone, tables, s_table, block_starts, block_counts, blocks, tiles, offsets)
    gl.warp_specialize(
        [
            (consume, (0, rings, rows, GROUP, DIM, UNIT, KS, VS, PASS)),
            (consume, (1, rings, rows, GROUP, DIM, UNIT, KS, VS, PASS)),
            (produce, (keys, shared, pages, True, GROUP, DIM, UNIT, KS, PASS)),
            (produce, (values, shared, pages, False, GROUP, DIM, UNIT, VS, PASS)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )


def fits(q: torch.Tensor, batch: PagedBatch, out: torch.Tensor, scale: float) -> bool:
    """Whether cache and output lie as the copies take them, in whole heads side by side; queries are laid so."""
    keys, values = batch.keys, batch.values
    pages, page, _, dim = keys.shape
    token = keys.stride(1)
    # A running maximum of scaled scores: their order is that of scores. Coordinates have 32 bits.
    return (
        keys.stride() == values.stride() == (page * token, token, dim, 1)
        and token % 8 == 0
        and not (keys.data_ptr() | values.data_ptr()) & 15
        and _taken(out)
        and pages * page < 2**31
        and scale > 0
    )


def attend(
    q: torch.Tensor,
    batch: PagedBatch,
    index: BlockIndex,
    scale: float,
    corrections: Corrections | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Writes what :func:`sparse_kernels.gpu.block_sparse_prefill.block_sparse_prefill` returns."""
    heads, dim = q.shape[1:]
    kv_heads, tiles = index.counts.shape
    group = heads // kv_heads
    work = batch.tiles.whole if group % 2 else batch.tiles.halves
    works = work.shape[0]
    items = kv_heads * works * (group if group % 2 else group // 2)
    none = Corrections(batch.keys, batch.values, index.counts, index.counts, 0)
    means, value_means, offsets, weights, unit = corrections or none
    stages = STAGES[dim]
    programs = processors(q.device)
    laid = q if _taken(q) else q.contiguous()
    copied = (*(_rows(x) for x in (laid, batch.keys, batch.values, means, value_means, out)), out, lse)
    counts = _counts(q.device, items)
    given = (
        *copied, *counts, work, batch.tables, *index, offsets, weights,
        scale * _LOG2E, works, items, tiles, heads, batch.tables.stride(0), out.stride(0), weights.shape[-1] // WIDTH,
    )  # fmt: skip
    shared = {"GROUP": group, "DIM": dim, "UNIT": unit, "KS": stages[0], "VS": stages[1], **OPTIONS}
    which = passes(q.dtype, dim, group, unit)
    _launch.in_turn((min(programs, items),), given, [{**shared, "PASS": each} for each in which])


@cache
def passes(dtype: torch.dtype, dim: int, group: int, unit: int) -> tuple[int, ...]:
    """How often items are gone through, and how: without running maxima first, where weights have the range for it."""
    # Triton's later releases run out of registers where a step has a branch.
    spills = dim == 128 and (unit > 0 or group % 2 == 1) and _TRITON >= (3, 7)
    return (HOPEFUL.value, AGAIN.value) if dtype == torch.bfloat16 and not spills else (CAREFUL.value,)


def _taken(x: torch.Tensor) -> bool:
    """Whether copies take rows of heads ``[rows, heads, D]`` as they lie: heads side by side, aligned to 16 bytes."""
    return x.stride(1) == x.shape[2] and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0


def _rows(x: torch.Tensor) -> Rows:
    """Heads of rows side by side, copied 64 rows of one head at a time."""
    heads, dim = x.shape[-2:]
    return Rows(x, x.numel() // (heads * dim), heads * dim, x.stride(-3), (64, dim), LAYOUT)


def _counts(device: torch.device, items: int) -> _Counts:
    """Zero, and zero again when the kernels have ended; a captured graph gets its own, which it zeroes."""
    if torch.cuda.is_current_stream_capturing():
        return _Counts.zero(device, items)
    key = (device, current_stream(device))
    found = _kept.get(key)
    if found is None or found.redone.numel() <= 2 * items:
        found = _kept[key] = _Counts.zero(device, items)
    return found


_launch = Launcher(kernel)
