"""Sparse attention over a paged KV cache: selection, block-sparse prefill, sparse decode, page summaries.

Imports nothing of sparsity-router, so it can be used alone.
"""

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparse_kernels.decode import select_pages, sparse_paged_decode
from sparse_kernels.dense import dense_attention
from sparse_kernels.paged import PagedSequence
from sparse_kernels.prefill import block_sparse_prefill
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from sparse_kernels.scores import SCORES, Keys
from sparse_kernels.selection import BlockSelection, select_blocks
from sparse_kernels.stats import AttentionStats, causal_pairs
from sparse_kernels.summaries import PageSummaries
from sparse_kernels.tiles import TileGrid

__all__ = [
    "SCORES",
    "AttentionStats",
    "BlockSelection",
    "DecodeConfig",
    "Keys",
    "LayerSchedule",
    "PageSummaries",
    "PagedSequence",
    "PrefillConfig",
    "SparseAttention",
    "TileGrid",
    "block_sparse_prefill",
    "causal_pairs",
    "dense_attention",
    "select_blocks",
    "select_pages",
    "sparse_paged_decode",
]
