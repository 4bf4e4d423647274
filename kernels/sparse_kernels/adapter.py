"""Sparse attention for any Hugging Face model with grouped-query attention: `attn_implementation="sparsity"`.

    from sparse_kernels.adapter import SparseAttention, use_sparsity
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sparsity")
    attended = use_sparsity(model, SparseAttention(prefill=PrefillConfig(threshold=0.1)))

It is made to try a profile and to measure its quality: it lays the cache out in pages at every call, so it saves no
time. Importing this module registers the name with transformers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparse_kernels.decode import sparse_paged_decode
from sparse_kernels.dense import dense_attention
from sparse_kernels.paged import PagedSequence
from sparse_kernels.prefill import block_sparse_prefill
from sparse_kernels.stats import AttentionStats
from sparse_kernels.summaries import PageSummaries

NAME = "sparsity"
_SETTINGS = "sparse_attention"
# What models ask of attention that these kernels do not do.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


class AttentionProfile(Protocol):
    """What decides how a model attends; a profile of sparsity_worker is one."""

    @property
    def prefill(self) -> PrefillConfig:
        """Of prompts."""

    @property
    def decode(self) -> DecodeConfig:
        """Of single tokens."""

    @property
    def dense_layers(self) -> Set[int]:
        """Layers that always attend densely."""

    @property
    def block_size(self) -> int:
        """Keys a block, tokens."""

    @property
    def sub_block(self) -> int:
        """Keys behind one mean, tokens; divides block_size."""


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """A profile put together by hand; see :class:`AttentionProfile`."""

    prefill: PrefillConfig = field(default_factory=PrefillConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    dense_layers: Set[int] = frozenset({0, 1})
    block_size: int = 64
    sub_block: int = 16


class Attended:
    """What a model attended since the last reset.

    Attributes:
        prefill: counters of each sequence of a call with more than one row of it, by layer.
        decode: counters of each sequence of a call with one row of it, by layer.
    """

    def __init__(self) -> None:
        self.prefill: dict[int, list[AttentionStats]] = defaultdict(list)
        self.decode: dict[int, list[AttentionStats]] = defaultdict(list)

    def reset(self) -> None:
        """Forgets."""
        self.prefill.clear()
        self.decode.clear()

    def density(self, layers: Set[int] | None = None) -> float:
        """Attended over causal pairs of prompts; of ``layers``, or of all."""
        chosen = [one for layer, calls in self.prefill.items() if layers is None or layer in layers for one in calls]
        causal = sum(one.causal for one in chosen)
        return sum(one.attended for one in chosen) / causal if causal else 1.0


@dataclass(frozen=True, slots=True)
class _Settings:
    profile: AttentionProfile
    attended: Attended


def use_sparsity(model: nn.Module, profile: AttentionProfile) -> Attended:
    """Makes a model that was loaded with ``attn_implementation="sparsity"`` attend by ``profile``, from the next call.

    Returns:
        Counters, which grow with every call.

    Raises:
        ValueError: when the model was loaded otherwise, or has no attention with grouped queries.
    """
    loaded = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if loaded != NAME:
        raise ValueError(f"model: was loaded with attn_implementation={loaded!r}; load it with {NAME!r}")
    attended = Attended()
    layers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "k_proj")]
    if not layers:
        raise ValueError("model: has no attention layers with keys of their own, so that nothing can be sparse")
    for layer in layers:
        setattr(layer, _SETTINGS, _Settings(profile, attended))
    return attended


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it.

    Args:
        module: the layer.
        query: ``[batch, Hq, T, D]``.
        key: ``[batch, Hkv, S, D]``, earlier tokens included.
        value: same shape.
        attention_mask: bool ``[batch, S]``, False for padding at either end; None without padding.
        scaling: softmax scale; ``D ** -0.5`` when None.
        dropout: must be 0.
        kwargs: the rest, of which sliding windows, soft caps and learned sinks are refused.

    Returns:
        ``[batch, T, Hq, D]``, zero for padding rows, and no weights.

    Raises:
        ValueError: naming what is not supported.
    """
    settings: _Settings | None = getattr(module, _SETTINGS, None)
    if settings is None:
        raise ValueError("model: call sparse_kernels.adapter.use_sparsity(model, profile) first")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: is not supported by attn_implementation={NAME!r}")
    if dropout or (torch.is_grad_enabled() and query.requires_grad):
        raise ValueError("model: sparse attention has no gradients; call model.eval() and use torch.inference_mode()")
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    batch, _, rows, _ = query.shape
    length = key.shape[2]
    out = torch.zeros_like(query.transpose(1, 2))
    for number in range(batch):
        valid = slice(None) if attention_mask is None else attention_mask[number].bool()
        asked = slice(None) if attention_mask is None else attention_mask[number, length - rows :].bool()
        q = query[number].transpose(0, 1)[asked]
        if not q.shape[0]:
            continue
        keys, values = (part[number].transpose(0, 1)[valid] for part in (key, value))
        found, stats = _one(settings.profile, layer, q, keys, values, scale)
        out[number, asked] = found
        (settings.attended.prefill if q.shape[0] > 1 else settings.attended.decode)[layer].append(stats)
    return out, None


def _one(
    profile: AttentionProfile, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, AttentionStats]:
    """One sequence: q ``[T, Hq, D]``, keys and values ``[S, Hkv, D]``."""
    block, length = profile.block_size, keys.shape[0]
    blocks = -(-length // block)
    pad = (0, 0, 0, 0, 0, blocks * block - length)
    paged = [nn.functional.pad(part, pad).view(blocks, block, *part.shape[1:]) for part in (keys, values)]
    sequence = PagedSequence(paged[0], paged[1], torch.arange(blocks), length)
    single = q.shape[0] == 1
    if layer in profile.dense_layers or length < (profile.decode if single else profile.prefill).sparse_from:
        return dense_attention(q, sequence, scale)
    summaries = PageSummaries(blocks, block, keys.shape[1], keys.shape[2], profile.sub_block)
    if single:
        found, stats = sparse_paged_decode(q[0], sequence, summaries, profile.decode, scale)
        return found[None], stats
    return block_sparse_prefill(q, sequence, summaries, profile.prefill, scale)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, flash_attention_mask)
