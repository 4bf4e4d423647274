"""The score from which on pages are as many as are wanted, found in registers without a sort."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def bounds(score, free, number, want, FUSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """``lo < hi``, and how many score ``hi`` or more: less than are wanted, and with those from ``lo`` on enough.

    Seven pivots a step, until those from ``lo`` on are as many as are wanted or all between score alike.
    """
    lo = tl.min(tl.where(free, score, float("inf")), 0)
    hi = tl.max(score, 0)
    hi += tl.maximum(1.0, tl.abs(hi) * 1e-6)
    above_lo = number
    above_hi = want * 0
    goal = want
    if want <= 0:
        lo = hi
        above_lo = want
    while above_lo != goal:
        step = (hi - lo) * 0.125
        p1 = lo + step
        p2 = lo + step * 2
        p3 = lo + step * 3
        p4 = lo + step * 4
        p5 = lo + step * 5
        p6 = lo + step * 6
        p7 = lo + step * 7
        # Two counts to a word.
        a = (score >= p1).to(tl.int32) + ((score >= p2).to(tl.int32) << 16)
        b = (score >= p3).to(tl.int32) + ((score >= p4).to(tl.int32) << 16)
        c = (score >= p5).to(tl.int32) + ((score >= p6).to(tl.int32) << 16)
        d = (score >= p7).to(tl.int32)
        if FUSED:
            a, b, c, d = tl.reduce((a, b, c, d), 0, _add)
        else:
            a = tl.sum(a, 0)
            b = tl.sum(b, 0)
            c = tl.sum(c, 0)
            d = tl.sum(d, 0)
        low = lo
        high = hi
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p1, a & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p2, a >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p3, b & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p4, b >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p5, c & 0xFFFF, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p6, c >> 16, want)
        lo, hi, above_lo, above_hi = _narrow(lo, hi, above_lo, above_hi, p7, d, want)
        if (lo <= low) & (hi >= high):
            # No number lies between.
            goal = above_lo
    return lo, hi, above_hi


@triton.jit
def _narrow(lo, hi, above_lo, above_hi, pivot, above, want):  # type: ignore[no-untyped-def]
    """The interval with a pivot in place of one of its ends, and how many score at least so much."""
    lower = (above >= want) & (pivot > lo)
    upper = (above < want) & (pivot < hi)
    lo = tl.where(lower, pivot, lo)
    above_lo = tl.where(lower, above, above_lo)
    hi = tl.where(upper, pivot, hi)
    above_hi = tl.where(upper, above, above_hi)
    return lo, hi, above_lo, above_hi


@triton.jit
def _add(a0, a1, a2, a3, b0, b1, b2, b3):  # type: ignore[no-untyped-def]
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3
