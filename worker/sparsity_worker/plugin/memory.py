"""Page summaries, charged to the memory that SGLang plans the KV cache with."""

from __future__ import annotations

from typing import Any, Final

import torch
from sparse_kernels import PageSummaries
from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.plugin.ranks import Ranks
from sparsity_worker.profiles.served_tiers import block_profiles

CELL_SIZE: Final = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size"
"""What SGLang counts a token of the KV cache by: its bytes over all layers of a rank."""


def summary_dtype(device: torch.device | str, cached: torch.dtype) -> torch.dtype:
    """Of means: as wide as the cache on a GPU; on the CPU, which scores in float32, in that."""
    return torch.float32 if torch.device(device).type == "cpu" else cached


def summaries_of(cache: torch.Tensor, sub_page: int, layers: range) -> dict[int, PageSummaries]:
    """Empty summaries of layers whose KV caches are like ``cache``, ``[pages, page, Hkv, D]``.

    Raises:
        ConfigurationError: when there is no memory for them.
    """
    pages, page, kv_heads, dim = cache.shape
    shape, dtype = (pages, page, kv_heads, dim, sub_page), summary_dtype(cache.device, cache.dtype)
    try:
        return {layer: PageSummaries(*shape, cache.device, dtype) for layer in layers}
    except torch.OutOfMemoryError as error:
        problem = f"no memory is left for the page summaries of {pages * page} tokens"
        raise ConfigurationError(f"--mem-fraction: {problem}; lower it, or --max-total-tokens") from error


def charge(cell: int, _: Any, kvc: Any, layers: int) -> int:
    """A token's bytes with its share of the page summaries; a hook after SGLang's own count.

    Args:
        cell: SGLang's count.
        kvc: its configurator of KV caches.
        layers: of the cache.
    """
    model = kvc.model_config
    # Tiers share the summaries, which are of one size.
    profile = next(iter(block_profiles(model)), None)
    if profile is None:
        return cell
    heads = len(Ranks.of(model.get_total_num_kv_heads()).own_heads)
    dtype = summary_dtype(kvc.device, kvc.kv_cache_dtype)
    # On torch's meta device nothing is allocated.
    page = PageSummaries(1, profile.block_size, heads, model.head_dim, profile.sub_block, "meta", dtype)
    return cell + -(-page.nbytes * layers // profile.block_size)
