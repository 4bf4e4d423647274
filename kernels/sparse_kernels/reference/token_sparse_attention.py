"""The definitions of token-level top-k attention, in plain torch and float64 (DeepSeek-V3.2, arXiv 2512.02556)."""

from __future__ import annotations

import torch


def lightning_scores_reference(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, prefix: int) -> torch.Tensor:
    """``sum over heads of w relu(q . k)``; q ``[T, J, D]``, k ``[S, D]``, weights ``[T, J]``; ``[T, S]``."""
    scores = torch.full((q.shape[0], k.shape[0]), float("-inf"), dtype=torch.float64)
    for row in range(q.shape[0]):
        seen = prefix + row + 1
        products = (q[row].double() @ k[:seen].double().T).relu()
        scores[row, :seen] = weights[row].double() @ products
    return scores


def token_sparse_attention_reference(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, scale: float
) -> torch.Tensor:
    """q ``[T, Hq, D]``, keys and values ``[S, Hkv, D]``, tokens ``[T, 1 or Hkv, count]`` with -1 for none."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // keys.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            kv = head // group
            mine = tokens[row, kv if tokens.shape[1] > 1 else 0]
            mine = mine[mine >= 0].long()
            if mine.numel():
                weights = (keys[mine, kv].double() @ q[row, head].double() * scale).softmax(0)
                out[row, head] = weights @ values[mine, kv].double()
    return out


def token_sparse_latent_attention_reference(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    tokens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention with one KV head: keys are latent and rotary part together, values the latent part."""
    q, keys = torch.cat([q_latent, q_rope], -1), torch.cat([latent, rope], -1)[:, None]
    values = torch.nn.functional.pad(latent, (0, rope.shape[1]))[:, None]
    found = token_sparse_attention_reference(q, keys, values, tokens[:, None], scale)
    return found[..., : latent.shape[1]]
