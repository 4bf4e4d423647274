"""Figures of others, recorded on 2026-11-23 on an H100 80 GB HBM3 with torch 2.11.0+cu130, and marked so in tables.

32 query and 8 KV heads of 128 dimensions, bfloat16, batch 1, causal; milliseconds by prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping

FLASH_ATTENTION_3: Mapping[int, float] = {8192: 0.740, 16384: 2.875, 32768: 12.44, 65536: 49.2, 131072: 208.0}
CUDNN: Mapping[int, float] = {8192: 0.896, 16384: 3.343, 32768: 13.85, 65536: 56.5, 131072: 248.4}
# Selection and attention at about a tenth of the pairs, pages of 64, without mean correction.
FLASH_PREFILL_V2: Mapping[int, float] = {32768: 2.340, 65536: 8.354, 131072: 36.19}
FLASH_PREFILL_V2_DENSITY = 0.1
# Of its attention alone, over a forced random index of a tenth of the blocks, TFLOP/s of kept pairs.
FLASH_PREFILL_V2_FORCED: Mapping[int, float] = {32768: 517.0, 65536: 550.0, 131072: 494.0}
PEAK_TFLOPS, PEAK_TBPS = 989.0, 3.35


def fastest_dense(length: int, cudnn_ms: float) -> float | None:
    """FlashAttention-3's recorded time, scaled by how this run's cuDNN compares with the recorded one."""
    if length not in FLASH_ATTENTION_3:
        return None
    return FLASH_ATTENTION_3[length] * cudnn_ms / CUDNN[length]
