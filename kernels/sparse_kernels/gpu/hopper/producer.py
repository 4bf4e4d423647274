"""The producers of the prefill kernel: one warp brings queries and keys to shared memory, one brings values."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from sparse_kernels.gpu.hopper.items import AHEAD, PAGE, STEP, advance, draw, means_of, own_pages, posted_item, work_of

# Named anew between the Triton releases that this runs on.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit  # type: ignore[untyped-decorator]
def _two_pages(desc, row0, row1, column, bar, to, BYTES: gl.constexpr):  # type: ignore[no-untyped-def]
    """Starts the copy of two pages of one head to a slot."""
    mbarrier.expect(bar, BYTES)
    tma.async_copy_global_to_shared(desc, [row0, column], bar, to.slice(0, 64, dim=0))
    tma.async_copy_global_to_shared(desc, [row1, column], bar, to.slice(64, 64, dim=0))


@gluon.jit  # type: ignore[untyped-decorator]
def _clear(ring, slot, valid0, valid1, DIM: gl.constexpr, STAGES: gl.constexpr):  # type: ignore[no-untyped-def]
    """Zeroes the rows of a slot's two pages past the valid ones: they may be NaN, and zero times NaN is NaN."""
    # The slot is swizzled in tiles of 8 rows of 128 bytes, one column of them after another.
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    tiles = ring._reinterpret(ring.dtype, [STAGES * DIM // 64 * 16, 8, 64], ring.layout)
    o_r = gl.arange(0, 8, gl.SliceLayout(1, L))
    for i in range(16):
        valid = gl.where(i < 8, valid0 - i * 8, valid1 - (i - 8) * 8)
        if valid < 8:
            for i_c in gl.static_range(DIM // 64):
                tile = tiles.index((slot * (DIM // 64) + i_c) * 16 + i)
                b_x = tile.load(L)
                tile.store(gl.where((o_r < valid)[:, None], b_x, gl.zeros_like(b_x)))
    fence_async_shared()
    _barrier()


@gluon.jit  # type: ignore[untyped-decorator]
def produce(  # type: ignore[no-untyped-def]
    into, shared, pages,
    KEYS: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, UNIT: gl.constexpr, STAGES: gl.constexpr,
    PASS: gl.constexpr,
):  # fmt: skip
    """Brings an item's pages, two a slot, and then its means; with ``KEYS`` also queries, and hands out the items."""
    desc, mean_desc, ring, full, empty = into
    cleared, q_desc, q_s, q_full, q_empty, counter, posted, p_full, p_empty = shared
    work, works, items, redone, tables, s_table, block_starts, block_counts, blocks, tiles, offsets = pages
    L1: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    EVEN: gl.constexpr = GROUP % 2 == 0
    BYTES: gl.constexpr = STEP * DIM * 2
    slot = 0
    phase = 1
    q_phase = 1
    p_slot = 0
    p_phase = 0
    c_phase = 0
    item = gl.program_id(0)
    while item < items:
        i_kv, i_h, i_t, i_s, position, row, _, length = work_of(item, items, work, works, redone, GROUP, PASS)
        begin = gl.load(block_starts + i_kv * tiles + i_t)
        kept = gl.load(block_counts + i_kv * tiles + i_t)
        p_table = tables + i_s.to(gl.int64) * s_table
        own = own_pages(position, GROUP)
        beside, mean_steps = means_of(position, kept + own, UNIT)
        odd = (kept + own) % 2 if not UNIT else gl.where(beside > 0, 0, (kept + own) % 2)
        total = kept + own + odd
        column = i_kv * DIM
        if EVEN:
            # The diagonal's block, again where the count is odd, the one before it in the tile, and the kept ones.
            first = position // PAGE
            here = blocks + begin - own - odd
            other = gl.load(here + 1, mask=own + odd == 1, other=0)
            second = gl.where(odd == 1, first, gl.where(own == 2, first - 1, other))
            last = total - 1
            b0 = gl.load(here + 2, mask=(total > 2) & (own + odd < 3), other=first - 1)
        else:
            # The tile's two blocks, the kept ones, and the last again where the count is odd.
            second = position // PAGE
            first = gl.minimum(second + 1, (length - 1) // PAGE)
            here = blocks + begin - 2
            last = kept + 1
            b0 = gl.load(here + 2, mask=total > 2, other=0)
        page0 = gl.load(p_table + first)
        page1 = gl.load(p_table + second)
        b1 = gl.load(here + gl.minimum(3, last), mask=total > 3, other=0)
        if UNIT:
            row0 = gl.load(offsets + i_s)
        if KEYS:
            mbarrier.wait(q_empty, q_phase)
            q_phase ^= 1
            mbarrier.expect(q_full, BYTES)
            tma.async_copy_global_to_shared(q_desc, [row, i_h * DIM], q_full, q_s.index(0))
            if EVEN:
                tma.async_copy_global_to_shared(q_desc, [row, i_h * DIM + DIM], q_full, q_s.index(1))
            else:
                tma.async_copy_global_to_shared(q_desc, [row + PAGE, i_h * DIM], q_full, q_s.index(1))
            # Before the keys: the others ask for it when they begin with this one.
            item = draw(counter, items, redone, PASS)
            mbarrier.wait(p_empty.index(p_slot), p_phase ^ 1)
            posted.index(p_slot).store(gl.full([1], item, gl.int32, L1))
            mbarrier.arrive(p_full.index(p_slot), count=1)
        else:
            valid0 = length - first * PAGE
            valid1 = length - second * PAGE
        for j in range(0, total, 2):
            # Ids run two steps ahead and pages one, so that no copy waits for them.
            more = j + 2 < total
            next0 = gl.load(p_table + b0, mask=more, other=0)
            next1 = gl.load(p_table + b1, mask=more, other=0)
            b0 = gl.load(here + j + 4, mask=j + 4 < total, other=0)
            b1 = gl.load(here + gl.minimum(j + 5, last), mask=j + 5 < total, other=0)
            mbarrier.wait(empty.index(slot), phase)
            bar = full.index(slot)
            to = ring.index(slot)
            if UNIT and j + 1 == total:
                mbarrier.expect(bar, BYTES)
                tma.async_copy_global_to_shared(desc, [page0 * PAGE, column], bar, to.slice(0, 64, dim=0))
                tma.async_copy_global_to_shared(mean_desc, [row0, column], bar, to.slice(64, 64, dim=0))
            elif KEYS:
                _two_pages(desc, page0 * PAGE, page1 * PAGE, column, bar, to, BYTES)
            else:
                if (j == 0) & (gl.minimum(valid0, valid1) < PAGE):
                    _two_pages(desc, page0 * PAGE, page1 * PAGE, column, cleared, to, BYTES)
                    mbarrier.wait(cleared, c_phase)
                    c_phase ^= 1
                    _clear(ring, slot, valid0, valid1, DIM, STAGES)
                    mbarrier.arrive(bar, count=1)
                else:
                    _two_pages(desc, page0 * PAGE, page1 * PAGE, column, bar, to, BYTES)
            slot, phase = advance(slot, phase, STAGES)
            page0 = next0
            page1 = next1
        if UNIT:
            for i in range(mean_steps):
                mbarrier.wait(empty.index(slot), phase)
                at = row0 + beside + i * STEP
                _two_pages(mean_desc, at, at + 64, column, full.index(slot), ring.index(slot), BYTES)
                slot, phase = advance(slot, phase, STAGES)
        if not KEYS:
            item = posted_item(posted, p_full, p_empty, p_slot, p_phase, L1)
        p_slot, p_phase = advance(p_slot, p_phase, AHEAD)
