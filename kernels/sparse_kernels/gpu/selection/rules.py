"""The rules of block selection on a row of needs in registers, without a sort.

A rule keeps what lies above a level, and of what lies on it the lower blocks; the level is searched for in the bits of
the floats, which order numbers that are not negative.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x):  # type: ignore[no-untyped-def]
    """To the nearest whole number, halves to the even one, as torch rounds."""
    whole = tl.floor(x)
    rest = x - whole
    odd = whole - 2.0 * tl.floor(whole * 0.5)
    return whole + tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1.0)), 1.0, 0.0)


@triton.jit
def _add(a1, a2, a3, a4, a5, a6, a7, b1, b2, b3, b4, b5, b6, b7):  # type: ignore[no-untyped-def]
    return a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7


@triton.jit  # type: ignore[untyped-decorator]
def _eighth(lo, span, j: tl.constexpr):  # type: ignore[no-untyped-def]
    return lo + (span >> 3) * j + (((span & 7) * j) >> 3)


@triton.jit
def _above(b_key, b_weight, pivot):  # type: ignore[no-untyped-def]
    return tl.where(b_key >= pivot, b_weight, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def search(b_key, b_weight, target, total, top, TOGETHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The level at which the weight of keys at or above it reaches ``target``.

    Seven pivots a step: eight intervals. All sums of a step are one reduction when ``TOGETHER``, which Triton's
    interpreter does element by element.

    Args:
        b_key: int32, the bits of floats that are not negative; 0 is never taken.
        b_weight: float32, what each key weighs.
        target: weight to reach.
        total: weight of all keys above 0.
        top: the largest key.

    Returns:
        ``lo``, ``hi``, the weight at or above ``hi``, which is less than the target, and whether those at or above
        ``lo`` weigh exactly the target. If so all of them are taken; else those from ``hi`` on, and of those in
        ``[lo, hi)``, which are equal, as many as are missing.
    """
    lo = top * 0 + 1
    hi = top + 1
    w_lo = total
    w_hi = total * 0.0
    if target <= 0.0:
        lo = hi
        w_lo = target
    elif total <= target:
        hi = lo
        w_lo = target
        w_hi = total
    while (w_lo != target) & (hi - lo > 1):
        span = hi - lo
        p1 = _eighth(lo, span, 1)
        p2 = _eighth(lo, span, 2)
        p3 = _eighth(lo, span, 3)
        p4 = _eighth(lo, span, 4)
        p5 = _eighth(lo, span, 5)
        p6 = _eighth(lo, span, 6)
        p7 = _eighth(lo, span, 7)
        b_1 = _above(b_key, b_weight, p1)
        b_2 = _above(b_key, b_weight, p2)
        b_3 = _above(b_key, b_weight, p3)
        b_4 = _above(b_key, b_weight, p4)
        b_5 = _above(b_key, b_weight, p5)
        b_6 = _above(b_key, b_weight, p6)
        b_7 = _above(b_key, b_weight, p7)
        if TOGETHER:
            w1, w2, w3, w4, w5, w6, w7 = tl.reduce((b_1, b_2, b_3, b_4, b_5, b_6, b_7), 0, _add)
        else:
            w1 = tl.sum(b_1, 0)
            w2 = tl.sum(b_2, 0)
            w3 = tl.sum(b_3, 0)
            w4 = tl.sum(b_4, 0)
            w5 = tl.sum(b_5, 0)
            w6 = tl.sum(b_6, 0)
            w7 = tl.sum(b_7, 0)
        # The highest pivot that reaches the target, and the lowest that does not; lower ones first, higher ones last.
        lo, w_lo = _raise(lo, w_lo, p1, w1, target)
        lo, w_lo = _raise(lo, w_lo, p2, w2, target)
        lo, w_lo = _raise(lo, w_lo, p3, w3, target)
        lo, w_lo = _raise(lo, w_lo, p4, w4, target)
        lo, w_lo = _raise(lo, w_lo, p5, w5, target)
        lo, w_lo = _raise(lo, w_lo, p6, w6, target)
        lo, w_lo = _raise(lo, w_lo, p7, w7, target)
        hi, w_hi = _lower(hi, w_hi, p7, w7, target)
        hi, w_hi = _lower(hi, w_hi, p6, w6, target)
        hi, w_hi = _lower(hi, w_hi, p5, w5, target)
        hi, w_hi = _lower(hi, w_hi, p4, w4, target)
        hi, w_hi = _lower(hi, w_hi, p3, w3, target)
        hi, w_hi = _lower(hi, w_hi, p2, w2, target)
        hi, w_hi = _lower(hi, w_hi, p1, w1, target)
    return lo, hi, w_hi, w_lo == target


@triton.jit
def _raise(lo, w_lo, pivot, weight, target):  # type: ignore[no-untyped-def]
    reached = weight >= target
    return tl.where(reached, pivot, lo), tl.where(reached, weight, w_lo)


@triton.jit
def _lower(hi, w_hi, pivot, weight, target):  # type: ignore[no-untyped-def]
    missed = weight < target
    return tl.where(missed, pivot, hi), tl.where(missed, weight, w_hi)


@triton.jit  # type: ignore[untyped-decorator]
def ranked(b_need, m_free, threshold, blocks, TOP_P: tl.constexpr, TOGETHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """What ``top_p`` or ``top_k`` takes: blocks for sure, blocks on the level, and how many of these.

    Args:
        b_need: float32, a tile's need of each block.
        m_free: what there is to choose from.
        threshold: of the rule.
        blocks: blocks of the whole prompt.
    """
    b_free = tl.where(m_free, b_need, 0.0)
    b_key = b_free.to(tl.int32, bitcast=True)
    top = tl.max(b_key, 0)
    if TOP_P:
        b_weight = b_free
        total = tl.sum(b_free, 0)
        given = tl.sum(tl.where(m_free, 0.0, b_need), 0)
        target = threshold * (total + given) - given
        # Sums may pass one by rounding: a threshold of 1 stands for all.
        target = tl.where(threshold >= 1.0, total, target)
    else:
        b_weight = tl.where(b_key > 0, 1.0, 0.0)
        total = tl.sum(b_weight, 0)
        target = rounded(threshold * blocks.to(tl.float32))
    lo, hi, w_hi, exact = search(b_key, b_weight, target, total, top, TOGETHER)
    each = lo.to(tl.float32, bitcast=True) if TOP_P else 1.0
    lacking = tl.maximum(target - w_hi, 1e-30)
    missing = tl.where(exact, 32767.0, lacking / tl.maximum(each, lacking * (1.0 / 32767)))
    left = missing.to(tl.int32)
    left = tl.where(left.to(tl.float32) < missing, left + 1, left)
    m_sure = b_key >= hi
    return m_sure, (b_key >= lo) & (b_key < hi), left
