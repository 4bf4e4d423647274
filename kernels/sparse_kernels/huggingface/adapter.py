"""Sparse attention for any Hugging Face model with grouped-query attention: `attn_implementation="sparsity"`.

    from sparse_kernels.huggingface.adapter import SparseAttention, use_sparsity
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sparsity")
    attended = use_sparsity(model, SparseAttention(prefill=PrefillConfig(threshold=0.1)))

With any other cache than a :class:`sparse_kernels.huggingface.paged_cache.PagedCache` the keys are laid out in pages at
every call, which costs a decode step more than sparsity saves. Importing this module registers the name with
transformers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from sparse_kernels.cpu.block_sparse_prefill import block_sparse_prefill_cpu
from sparse_kernels.cpu.dense_attention import dense_attention
from sparse_kernels.cpu.sparse_paged_decode import sparse_paged_decode_cpu
from sparse_kernels.huggingface.paged_cache import PagedCache
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.schedule import SparseAttention
from sparse_kernels.stats import AttentionStats

NAME = "sparsity"
_SETTINGS = "sparse_attention"
# What models ask of attention that these kernels do not do.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


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


class LayerAttention(Protocol):
    """How the layers of a model attend."""

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Attention of q ``[T, Hq, D]``, the last T tokens of the sequence, in the same shape, and what it attended."""


@dataclass(frozen=True, slots=True)
class _Settings:
    attention: LayerAttention
    page: int
    sub_page: int
    cache: PagedCache | None
    attended: Attended


def use_sparsity(model: nn.Module, profile: SparseAttention, cache: PagedCache | None = None) -> Attended:
    """Makes a model that was loaded with ``attn_implementation="sparsity"`` attend by ``profile``, from the next call.

    Args:
        model: the model.
        profile: how it attends; a profile of sparsity_worker is one.
        cache: what is passed to the model as ``past_key_values``, when that is paged.

    Returns:
        Counters, which grow with every call.

    Raises:
        ValueError: when the model was loaded otherwise, or has no attention with grouped queries.
    """
    attention = attention_by(profile, next(model.parameters()).device)
    return use_attention(model, attention, profile.block_size, profile.sub_block, cache)


def attention_by(profile: SparseAttention, device: torch.device) -> LayerAttention:
    """How layers on a device attend by a profile: in torch on the CPU, by the kernels elsewhere."""
    if device.type == "cpu":
        return ByProfile(profile)
    # It loads Triton, which torch for CPUs comes without.
    from sparse_kernels.huggingface.by_kernels import ByKernels

    return ByKernels(profile)


def use_attention(
    model: nn.Module, attention: LayerAttention, page: int, sub_page: int, cache: PagedCache | None = None
) -> Attended:
    """As :func:`use_sparsity`, by a function of one's own in place of a profile.

    Args:
        model: loaded with ``attn_implementation="sparsity"``.
        attention: called for every layer with that layer's queries and cache.
        page: tokens of a page of the cache.
        sub_page: tokens whose keys share a mean in the page summaries.
        cache: what is passed to the model as ``past_key_values``, when that is paged.

    Returns:
        Counters, which grow with every call.

    Raises:
        ValueError: when the model was loaded otherwise, or has no attention with keys of its own.
    """
    loaded = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if loaded != NAME:
        raise ValueError(f"model: was loaded with attn_implementation={loaded!r}; load it with {NAME!r}")
    attended = Attended()
    layers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "k_proj")]
    if not layers:
        raise ValueError("model: has no attention layers with keys of their own, so that nothing can be sparse")
    for layer in layers:
        setattr(layer, _SETTINGS, _Settings(attention, page, sub_page, cache, attended))
    return attended


@dataclass(frozen=True, slots=True)
class ByProfile:
    """A :class:`LayerAttention` that does on the CPU what a profile says."""

    profile: SparseAttention

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Dense below the profile's lengths and in its dense layers."""
        if q.shape[0] == 1:
            decode = self.profile.decode_at(layer)
            if decode and sequence.length >= decode.sparse_from:
                found, stats = sparse_paged_decode_cpu(q[0], sequence, summaries, decode, scale)
                return found[None], stats
        else:
            prefill = self.profile.prefill_at(layer)
            if prefill and sequence.length >= prefill.sparse_from:
                return block_sparse_prefill_cpu(q, sequence, summaries, prefill, scale)
        return dense_attention(q, sequence, scale)


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
        raise ValueError("model: call sparse_kernels.huggingface.adapter.use_sparsity(model, profile) first")
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
        held = settings.cache.pages_of(layer, key) if settings.cache and attention_mask is None else None
        sequence, summaries = held or _pages(settings, *(part[number].transpose(0, 1)[valid] for part in (key, value)))
        found, stats = settings.attention(module, layer, q, sequence, summaries, scale)
        out[number, asked] = found
        (settings.attended.prefill if q.shape[0] > 1 else settings.attended.decode)[layer].append(stats)
    return out, None


def _pages(settings: _Settings, keys: torch.Tensor, values: torch.Tensor) -> tuple[PagedSequence, PageSummaries]:
    """Keys and values ``[S, Hkv, D]`` copied to pages."""
    page, length = settings.page, keys.shape[0]
    pages = -(-length // page)
    pad = (0, 0, 0, 0, 0, pages * page - length)
    stored = [nn.functional.pad(part, pad).view(pages, page, *part.shape[1:]) for part in (keys, values)]
    summaries = PageSummaries.beside(stored[0], settings.sub_page)
    return PagedSequence(stored[0], stored[1], torch.arange(pages, device=keys.device), length), summaries


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, flash_attention_mask)
