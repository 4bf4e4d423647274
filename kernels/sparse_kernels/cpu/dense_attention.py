"""Dense causal attention over a paged sequence, for prompts and layers that stay dense."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparse_kernels.cpu.partial_softmax import flash, merged
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
    if prefix and queries > 1:
        out = _after_prefix(q, keys, values, prefix, scale)
    else:
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, is_causal=not prefix, scale=scale, enable_gqa=True
        )[0]
    pairs = heads * causal_pairs(queries, prefix)
    return out.transpose(0, 1), AttentionStats(pairs, pairs, 1.0, heads * queries)


def _after_prefix(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prefix: int, scale: float) -> torch.Tensor:
    """The last rows of a sequence, ``[Hq, T, D]``: causal among themselves, and over the prefix without a mask.

    One call with a mask would compute what it masks, too: at half a prompt a third to a half more time.

    Args:
        q: ``[T, Hq, D]``.
        keys: ``[1, Hkv, prefix + T, D]``.
        values: likewise.
        prefix: tokens before the rows.
        scale: softmax scale.
    """
    rows, kv_heads = q.transpose(0, 1), keys.shape[1]
    group = rows.shape[0] // kv_heads
    own = (each[0, :, None, prefix:].expand(-1, group, -1, -1).flatten(0, 1)[None] for each in (keys, values))
    out, lse = flash(rows[None], *own, 0.0, True, scale=scale)
    # Queries that share keys are rows of one head: no key is read twice.
    shared = rows.reshape(1, kv_heads, -1, rows.shape[-1])
    before, before_lse = flash(shared, keys[:, :, :prefix], values[:, :, :prefix], 0.0, False, scale=scale)
    return merged((out, lse), (before.reshape(out.shape), before_lse.reshape(lse.shape)))[0][0]
