"""What the roles of the prefill kernel share: work items, the schedule that hands them out, and positions in rings."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

# Of a key page, and of the query rows of a warp group.
PAGE = gl.constexpr(64)
# Keys of one step: two pages.
STEP = gl.constexpr(128)
# Items that may be put up before they are taken.
AHEAD = gl.constexpr(2)
# Passes over the items: all of them with running maxima; all without, of which those that cannot do without are
# written down; and these once more.
CAREFUL, HOPEFUL, AGAIN = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)


@gluon.jit  # type: ignore[untyped-decorator]
def advance(slot, phase, STAGES: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next slot of a ring, and the phase of its barrier."""
    after = slot + 1
    wraps = after == STAGES
    return gl.where(wraps, 0, after), gl.where(wraps, phase ^ 1, phase)


@gluon.jit  # type: ignore[untyped-decorator]
def draw(counter, items, redone, PASS: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next item that no program has; the last one drawn leaves the counters at zero for the next launch."""
    programs = gl.num_programs(0)
    item = programs + gl.atomic_add(counter, 1)
    if item == items + programs - 1:
        gl.store(counter, 0)
        if PASS == AGAIN:
            gl.store(redone, 0)
    return item


@gluon.jit  # type: ignore[untyped-decorator]
def posted_item(posted, full, empty, slot, phase, L: gl.constexpr):  # type: ignore[no-untyped-def]
    """The item that the scheduler put up."""
    mbarrier.wait(full.index(slot), phase)
    item = gl.sum(posted.index(slot).load(L), 0)
    mbarrier.arrive(empty.index(slot), count=1)
    return item


@gluon.jit  # type: ignore[untyped-decorator]
def work_of(  # type: ignore[no-untyped-def]
    item, items, work, works, redone, GROUP: gl.constexpr, PASS: gl.constexpr
):  # fmt: skip
    """KV head, first query head, and what :class:`sparse_kernels.layout.batch.BatchTiles` says of the rows.

    An even group: 64 rows of two query heads, one for each warp group. Another: 128 rows of one, half for each.
    """
    if PASS == AGAIN:
        item = gl.load(redone + 1 + item, mask=item < items, other=0)
    EACH: gl.constexpr = GROUP // 2 if GROUP % 2 == 0 else GROUP
    span = works * EACH
    i_kv = item // span
    rest = item - i_kv * span
    at = work + rest // EACH * 8
    i_h = i_kv * GROUP + rest % EACH * (GROUP // EACH)
    return i_kv, i_h, gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3), gl.load(at + 4), gl.load(at + 5)


@gluon.jit  # type: ignore[untyped-decorator]
def own_pages(position, GROUP: gl.constexpr):  # type: ignore[no-untyped-def]
    """Pages of the tile's own keys that an item's rows see."""
    return 1 + position // PAGE % 2 if GROUP % 2 == 0 else 2


@gluon.jit  # type: ignore[untyped-decorator]
def means_of(position, pages, UNIT: gl.constexpr):  # type: ignore[no-untyped-def]
    """Means of units that lie wholly before the tile: how many a page's step has room for, and steps of others."""
    if UNIT:
        units = position // STEP * 2 // UNIT
        # Beside the last page, where pages are odd and that spares a step; the first step has none.
        rest = units % STEP
        beside = gl.where((pages > 1) & (rest > 0) & (rest <= PAGE), pages % 2 * PAGE, 0)
        steps = (units - beside + STEP - 1) // STEP
    else:
        beside = 0
        steps = 0
    return beside, steps
