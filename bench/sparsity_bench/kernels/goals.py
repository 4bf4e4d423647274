"""What the kernels are to reach on an H200 with 32 query and 8 KV heads of 128 dimensions in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

ByLength = Mapping[int, float]

# Times cuDNN, over a full index.
FULL: ByLength = {8192: 1.1, 16384: 1.1, 32768: 1.05, 65536: 1.05, 131072: 1.1}
# TFLOP/s of kept pairs over a random tenth of the blocks, back to back.
FORCED: ByLength = {8192: 500.0, 16384: 600.0, 32768: 680.0, 65536: 640.0, 131072: 640.0}
# Extra time of mean correction at that index, as a share.
CORRECTION: ByLength = {8192: 0.2, 16384: 0.2, 32768: 0.2, 65536: 0.18, 131072: 0.15}
SELECTION_MS: ByLength = {8192: 0.08, 16384: 0.12, 32768: 0.22, 65536: 0.8, 131072: 2.6}
# Times the fastest dense attention, with selection and mean correction.
PREFILL: Mapping[str, ByLength] = {
    "aggressive": {8192: 1.3, 16384: 2.2, 32768: 3.8, 65536: 7.5, 131072: 13.0},
    "moderate": {8192: 1.1, 16384: 1.6, 32768: 2.7, 65536: 5.4, 131072: 9.0},
}
# Times the fastest dense decode, by tokens that a KV head attends, and by sequences and context.
DECODE: Mapping[int, Mapping[tuple[int, int], float]] = {
    2048: {(1, 16384): 1.05, (1, 32768): 1.7, (8, 32768): 4.5, (16, 32768): 6.2, (64, 32768): 7.8, (16, 131072): 14.0},
    4096: {(1, 16384): 1.0, (1, 32768): 1.4, (8, 32768): 3.2, (16, 32768): 4.2, (64, 32768): 5.0, (16, 131072): 10.0},
    512: {(16, 32768): 9.0, (64, 32768): 11.5},
}
# Times the fastest dense decode, where half of the sequences are dense: none of these waits longer than among its like.
MIXED = 0.97
# Of the bandwidth of a copy, on the bytes that decode must read, at so many sequences or more.
BANDWIDTH, BANDWIDTH_FROM = 0.85, 16
