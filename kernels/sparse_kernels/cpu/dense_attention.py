"""Dense causal attention over a paged sequence, for prompts and layers that stay dense."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.stats import AttentionStats, causal_pairs


def dense_attention(q: torch.Tensor, sequence: PagedSequence, scale: float) -> tuple[torch.Tensor, AttentionStats]:
    """Causal attention of the last T tokens of a paged sequence over all of it.

    Args:
        q: ``[T, Hq, D]``, the last T tokens of ``sequence``.
        sequence: keys and values, prefix included.
        scale: softmax scale.

    Returns:
        Output ``[T, Hq, D]`` in q's dtype, and counters of density 1.

    Raises:
        ValueError: when q holds more rows than the sequence has tokens, or heads do not divide.
    """
    queries, heads, _ = q.shape
    sequence.group(heads)
    prefix = sequence.length - queries
    if prefix < 0:
        raise ValueError(f"q: {queries} rows exceed the sequence's {sequence.length} tokens")
    # Token by token as the pages have them: heads first would be another copy, which a single query would wait for.
    keys, values = (
        cache[sequence.table].flatten(0, 1)[: sequence.length].transpose(0, 1)[None]
        for cache in (sequence.keys, sequence.values)
    )
    mask = None
    if prefix and queries > 1:
        rows = torch.arange(prefix, sequence.length, device=q.device)
        mask = torch.arange(sequence.length, device=q.device)[None] <= rows[:, None]
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys, values, attn_mask=mask, is_causal=not prefix, scale=scale, enable_gqa=True
    )
    pairs = heads * causal_pairs(queries, prefix)
    return out[0].transpose(0, 1), AttentionStats(pairs, pairs, 1.0, heads * queries)
