"""Attention over a part of the keys, and two parts as one: by log-sum-exp (FlashAttention-2, arXiv 2307.08691, 3.1)."""

from __future__ import annotations

import torch

# The public SDPA hides the log-sum-exp that merging two partial softmaxes needs.
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def merged(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two softmaxes over keys of their own as one.

    Args:
        one: outputs ``[..., D]`` and their float32 log-sum-exp ``[...]``, which is finite.
        other: likewise; its log-sum-exp may be minus infinity.

    Returns:
        Outputs in the dtype of ``one``, and their log-sum-exp.
    """
    (out, lse), (more, more_lse) = one, other
    both = torch.logaddexp(lse, more_lse)
    weight = (more_lse - both).exp_().unsqueeze(-1)
    return torch.lerp(out, more, weight.to(out.dtype)), both
