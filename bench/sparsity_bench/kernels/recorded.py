"""Figures of others, recorded on 2026-11-23 on an H100 80 GB HBM3 with torch 2.11.0+cu130, and marked so in tables.

32 query and 8 KV heads of 128 dimensions, bfloat16, batch 1, causal; milliseconds by prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping

ON = "recorded on an H100"
FLASH_ATTENTION_3: Mapping[int, float] = {8192: 0.740, 16384: 2.875, 32768: 12.44, 65536: 49.2, 131072: 208.0}
# FlashPrefill V2, pages of 64, without mean correction: its selection alone, at about a tenth of the pairs (a fifth at
# 16,384 tokens), and selection and attention together by the density that it attended.
FLASH_PREFILL_V2_SELECTION: Mapping[int, float] = {16384: 0.144, 32768: 0.401, 65536: 1.448, 131072: 5.29}
FLASH_PREFILL_V2: Mapping[int, Mapping[float, float]] = {
    16384: {0.2: 1.123},
    32768: {0.2: 3.657, 0.1: 2.340},
    65536: {0.2: 14.453, 0.1: 8.354, 0.05: 5.373},
    131072: {0.2: 62.8, 0.1: 36.19, 0.05: 19.85},
}
# Densities that differ by no more, as a share, stand beside each other.
ALIKE = 0.15
FORCED_DENSITY = 0.1
# Of its attention alone, over a forced random index of a tenth of the blocks, TFLOP/s of kept pairs.
FLASH_PREFILL_V2_FORCED: Mapping[int, float] = {8192: 320.0, 16384: 428.0, 32768: 517.0, 65536: 550.0, 131072: 494.0}
PEAK_TFLOPS = 989.0


def flash_prefill_v2(length: int, density: float) -> tuple[float, float] | None:
    """Density and milliseconds of the figure that is of about this density; None where there is none."""
    found = FLASH_PREFILL_V2.get(length, {})
    near = min(found, key=lambda each: abs(each - density), default=0.0)
    return (near, found[near]) if near and abs(density / near - 1) <= ALIKE else None
