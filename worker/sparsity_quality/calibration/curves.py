"""What each threshold costs and spoils in each KV head, and each budget in each layer: measured beside dense attention.

While the model reads a text densely, every layer is also attended sparsely with the same queries, keys and values, at
every threshold of a grid. What that spoils is the error of the head's contribution to the residual stream, after the
output projection, relative to the stream: a head whose output is small, or is projected away, may err more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sparse_kernels.config import DecodeConfig
from sparse_kernels.cpu.block_selection import BlockSelection, fixed_blocks, keep
from sparse_kernels.cpu.block_sparse_prefill import block_sparse_prefill_cpu
from sparse_kernels.cpu.dense_attention import dense_attention
from sparse_kernels.cpu.sparse_paged_decode import sparse_paged_decode_cpu
from sparse_kernels.huggingface.adapter import use_attention
from sparse_kernels.huggingface.needs import keys_of
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.schedule import SparseAttention
from sparse_kernels.scores import block_energy_cpu
from sparse_kernels.stats import AttentionStats, causal_pairs
from sparsity_rpc.errors import ConfigurationError
from torch import nn

from sparsity_quality.subjects.model import LocalModel

THRESHOLDS = (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
_DECODED_ROWS = 12


class Curves(NamedTuple):
    """What was measured, averaged over texts; float64.

    Attributes:
        density: ``[layers, Hkv, thresholds]``, attended over causal pairs.
        coverage: same shape, estimated softmax mass on what is attended.
        error: same shape, squared error of the heads' contribution over the squared residual stream.
        decode_density: ``[layers, budgets]``, attended over all keys.
        decode_error: ``[layers, budgets]``, as ``error``, of single rows.
    """

    density: torch.Tensor
    coverage: torch.Tensor
    error: torch.Tensor
    decode_density: torch.Tensor
    decode_error: torch.Tensor


def measure_curves(
    model: LocalModel, texts: Sequence[Sequence[int]], base: SparseAttention, said: Callable[[str], None]
) -> Curves:
    """Curves of ``base``'s selector on every layer, its dense ones included.

    Args:
        model: the model.
        texts: token ids, each read as one prompt.
        base: whose score, rule, tiles, sink, window and decode settings apply.
        said: told of progress.
    """
    found = []
    for number, tokens in enumerate(texts, 1):
        observer = _Observer(model, base)
        with observer.watching():
            use_attention(model.model, observer, base.block_size, base.sub_block)
            with torch.inference_mode():
                model.model.base_model(torch.tensor([list(tokens)], device=model.device), use_cache=False)
        found.append(observer.curves())
        said(f"curves of text {number} of {len(texts)}, {len(tokens)} tokens")
    return Curves(*(torch.stack(parts).mean(0) for parts in zip(*found, strict=True)))


class _Observer:
    """A :class:`sparse_kernels.huggingface.adapter.LayerAttention` that answers densely and measures."""

    def __init__(self, model: LocalModel, base: SparseAttention) -> None:
        self._model, self._base = model, base
        self._stream: dict[int, float] = {}
        self._rows: list[dict[int, torch.Tensor]] = [{} for _ in Curves._fields]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the squared residual stream before each attention layer, while it lasts."""
        handles = []
        for parent in self._model.model.modules():
            for child in parent.children():
                if hasattr(child, "layer_idx") and hasattr(child, "k_proj"):
                    note = self._note(child.layer_idx)
                    handles.append(parent.register_forward_pre_hook(note, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._stream[layer] = float(hidden.double().square().sum(-1).mean())

        return note

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Dense, after measuring."""
        dense, stats = dense_attention(q, sequence, scale)
        if not hasattr(module, "o_proj"):
            raise ConfigurationError("--model: its attention has no o_proj, by which errors are weighed")
        weight: torch.Tensor = module.o_proj.weight  # type: ignore[union-attr, assignment]
        base, kv_heads = self._base.prefill, sequence.kv_heads
        grid = TileGrid.of(0, q.shape[0], base.query_tile)
        energy = block_energy_cpu(grid.split(q), keys_of(sequence, summaries), grid, base, scale)
        blocks, page = sequence.table.numel(), sequence.page
        forced, before = fixed_blocks(grid.starts, torch.tensor(q.shape[0]), blocks, page, base)
        rows = grid.valid.sum(1)
        inside = sum(int(count) * (int(count) + 1) // 2 for count in rows)
        found: list[list[torch.Tensor]] = [[], [], []]
        for threshold in THRESHOLDS:
            one = replace(base, threshold=threshold, head_thresholds=())
            kept = keep(energy.need, forced, before, one)
            coverage = (energy.mass * (kept | ~before)).sum(-1)
            chosen = BlockSelection(kept, coverage)
            out, _ = block_sparse_prefill_cpu(q, sequence, summaries, base, scale, selection=chosen)
            pairs = (kept.sum(2) * rows).sum(1) * page + inside
            found[0].append(pairs / causal_pairs(q.shape[0], 0))
            found[1].append((coverage * rows).sum(1) / rows.sum())
            found[2].append(self._errors(out - dense, weight, kv_heads, layer))
        decode = self._decode(dense, q, sequence, scale, weight, layer)
        for kept_rows, values in zip(self._rows, (*map(_last, found), *decode), strict=True):
            kept_rows[layer] = values
        return dense, stats

    def _errors(self, delta: torch.Tensor, weight: torch.Tensor, kv_heads: int, layer: int) -> torch.Tensor:
        """Of outputs ``[T, Hq, D]``: by KV head, float ``[Hkv]``."""
        parts = delta.reshape(delta.shape[0], kv_heads, -1).transpose(0, 1)
        projected = torch.bmm(parts, weight.view(weight.shape[0], kv_heads, -1).permute(1, 2, 0))
        return projected.double().square().sum(-1).mean(1) / self._stream[layer]

    def _decode(
        self,
        dense: torch.Tensor,
        q: torch.Tensor,
        sequence: PagedSequence,
        scale: float,
        weight: torch.Tensor,
        layer: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the last quarter as if they were decoded."""
        base, length = self._base, sequence.length
        step = max(1, length // 4 // _DECODED_ROWS)
        positions = range(length - 1, max(length * 3 // 4 - 1, 0), -step)
        summaries = PageSummaries(
            sequence.keys.shape[0], sequence.page, sequence.kv_heads, sequence.keys.shape[3], base.sub_block
        )
        densities, errors = torch.zeros(2, len(BUDGETS), dtype=torch.float64)
        before = length
        for position in positions:
            table = sequence.table[: position // sequence.page + 1]
            part = PagedSequence(sequence.keys, sequence.values, table, position + 1)
            # Of the page that is cut short here the summary speaks of too many keys.
            summaries.mark(sequence.table[position // sequence.page : before // sequence.page + 1])
            before = position
            for number, budget in enumerate(BUDGETS):
                config = _budgeted(base.decode, budget)
                out, stats = sparse_paged_decode_cpu(q[position], part, summaries, config, scale)
                delta = (out - dense[position])[None]
                errors[number] += self._errors(delta, weight, sequence.kv_heads, layer).sum() / len(positions)
                densities[number] += stats.density / len(positions)
        return densities, errors

    def curves(self) -> Curves:
        """What was measured."""
        return Curves(*(torch.stack([rows[layer] for layer in sorted(rows)]).double() for rows in self._rows))


def _last(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts, -1)


def _budgeted(config: DecodeConfig, budget: int) -> DecodeConfig:
    sink = min(config.sink, budget // 4)
    return replace(config, budget=budget, sink=sink, recent=max(1, min(config.recent, budget // 2)))
