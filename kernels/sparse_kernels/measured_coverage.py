"""How much of the softmax mass a few rows really keep: measured against every key, where selection only estimates."""

from __future__ import annotations

import torch


def spread_rows(first: int, count: int, wanted: int) -> torch.Tensor:
    """int64: ``wanted`` positions spread evenly over ``count`` from ``first`` on; all where there are fewer."""
    chosen = min(wanted, count)
    return first + (torch.arange(chosen) * 2 + 1) * count // (2 * max(chosen, 1))


def measured_coverage(
    q: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor, attended: torch.Tensor, scale: float
) -> float:
    """Share of the softmax mass on attended keys, mean over rows and heads, in [0, 1].

    Args:
        q: ``[R, Hq, D]``, the rows.
        positions: int64 ``[R]``, where they stand; later keys are not theirs.
        keys: ``[Hkv, blocks, block, D]``, zero past the end of the sequence.
        attended: bool ``[Hkv, R, blocks]``, blocks that each row attends exactly.
        scale: softmax scale.
    """
    kv_heads, blocks, block, dim = keys.shape
    rows = q.float().view(q.shape[0], kv_heads, -1, dim).permute(1, 0, 2, 3)
    scores = torch.einsum("hrgd,hkd->hrgk", rows, keys.float().flatten(1, 2)) * scale
    later = torch.arange(blocks * block, device=keys.device) > positions[:, None]
    shares = scores.masked_fill_(later[None, :, None], -torch.inf).softmax(-1)
    mass = shares.view(*shares.shape[:-1], blocks, block).sum(-1) * attended[:, :, None]
    return float(mass.sum(-1).mean())
