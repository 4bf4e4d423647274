"""The definition of decode over chosen pages, in plain torch and float64."""

from __future__ import annotations

import torch

from sparse_kernels.layout.paged import PagedSequence


def sparse_paged_decode_reference(
    q: torch.Tensor, sequence: PagedSequence, pages: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of one row over chosen logical pages of each KV head.

    Args:
        q: ``[Hq, D]``, the newest token's query.
        sequence: keys and values.
        pages: int64 ``[Hkv, n]``, logical pages.
        scale: softmax scale.

    Returns:
        float64 ``[Hq, D]``.
    """
    heads, dim = q.shape
    group = sequence.group(heads)
    keys, values = sequence.contiguous()
    out = torch.empty(heads, dim, dtype=torch.float64)
    for head in range(heads):
        positions = torch.cat(
            [
                torch.arange(page * sequence.page, min((page + 1) * sequence.page, sequence.length))
                for page in pages[head // group].tolist()
            ]
        )
        scores = keys[head // group, positions] @ q[head].double() * scale
        out[head] = scores.softmax(-1) @ values[head // group, positions]
    return out
