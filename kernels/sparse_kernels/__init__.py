"""Sparse attention over a paged KV cache: selection, block-sparse prefill, sparse decode, page summaries.

Imports nothing of sparsity-router, so it can be used alone.
"""

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparse_kernels.cpu.block_selection import BlockSelection, select_blocks_cpu
from sparse_kernels.cpu.block_sparse_prefill import block_sparse_prefill_cpu
from sparse_kernels.cpu.dense_attention import dense_attention
from sparse_kernels.cpu.sparse_paged_decode import select_pages_cpu, sparse_paged_decode_cpu
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from sparse_kernels.scores import SCORES, Keys
from sparse_kernels.stats import AttentionStats, causal_pairs

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
    "block_sparse_prefill_cpu",
    "causal_pairs",
    "dense_attention",
    "select_blocks_cpu",
    "select_pages_cpu",
    "sparse_paged_decode_cpu",
]
