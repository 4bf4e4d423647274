"""Triton kernels; each has its definition in :mod:`sparse_kernels.reference`."""

from typing import Any

from sparse_kernels.gpu import block_energy as _energy
from sparse_kernels.gpu import block_sparse_prefill as _prefill
from sparse_kernels.gpu import decode_batch as _batch
from sparse_kernels.gpu import decode_splits as _splits
from sparse_kernels.gpu import latent_attention as _latent
from sparse_kernels.gpu import page_scores as _scores
from sparse_kernels.gpu import page_selection as _pages
from sparse_kernels.gpu import page_summaries as _summaries
from sparse_kernels.gpu import sparse_paged_decode as _decode
from sparse_kernels.gpu import token_sparse_attention as _tokens
from sparse_kernels.gpu.selection import ordered_means as _means
from sparse_kernels.gpu.selection import tile_selection as _tiles


def kernels() -> dict[str, Any]:
    """Every Triton kernel by its name, for tools that compile them."""
    decode = (
        _batch.fill_table, _scores.score_pages, _pages.choose_pages, _decode.attend_pages, _splits.merge_splits
    )  # fmt: skip
    tokens = (_tokens.score_tokens, _tokens.attend_tokens, _latent.attend_latent, _latent.attend_lost)
    selection = (_means.gather_means, _tiles.select_tile_blocks)
    return {"block_energy": _energy.kernel, "block_sparse_prefill": _prefill.kernel} | {
        kernel.__name__: kernel for kernel in (_summaries.summarize, *selection, *decode, *tokens)
    }
