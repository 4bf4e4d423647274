"""What scores say of one text in every layer, from one dense pass; and what any rule would keep by that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparse_kernels.config import PrefillConfig
from sparse_kernels.cpu.block_selection import fixed_blocks, keep
from sparse_kernels.cpu.dense_attention import dense_attention
from sparse_kernels.huggingface.adapter import use_attention
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores import Keys, block_energy_cpu
from sparse_kernels.selectors import Selector
from sparse_kernels.stats import AttentionStats, causal_pairs

_STEPS = 16


def keys_of(sequence: PagedSequence, summaries: PageSummaries) -> Keys:
    """The keys of a sequence and their summaries, as scores want them."""
    summaries.refresh(sequence)
    keys, _ = sequence.gather()
    return Keys.of(keys, summaries, sequence.table)


class Needs:
    """The needs that each base's score finds; a :class:`sparse_kernels.huggingface.adapter.LayerAttention`.

    Args:
        model: a transformers model that was loaded with ``attn_implementation="sparsity"``.
        tokens: ids of the text, read as one prompt.
        bases: configurations whose scores are asked.
        page: keys a block.
        sub_page: keys behind one mean.

    Attributes:
        layers: that were seen.
    """

    def __init__(self, model: Any, tokens: Sequence[int], bases: Sequence[PrefillConfig], page: int, sub_page: int):
        self.length, self._page, self._bases = len(tokens), page, list(dict.fromkeys(bases))
        self._needs: list[dict[int, torch.Tensor]] = [{} for _ in self._bases]
        self._kv_heads = 0
        use_attention(model, self, page, sub_page)
        with torch.inference_mode():
            model.base_model(torch.tensor([list(tokens)], device=model.device), use_cache=False)
        self.layers = sorted(self._needs[0])

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Dense, after a look at the scores."""
        at = keys_of(sequence, summaries)
        self._kv_heads = sequence.kv_heads
        for needs, base in zip(self._needs, self._bases, strict=True):
            grid = TileGrid.of(0, q.shape[0], base.query_tile)
            needs[layer] = block_energy_cpu(grid.split(q), at, grid, base, scale).need
        return dense_attention(q, sequence, scale)

    def kept(self, base: PrefillConfig, config: PrefillConfig, layer: int) -> torch.Tensor:
        """Blocks before their tile that ``config``'s rule keeps, bool ``[Hkv, tiles, blocks]``."""
        need = self._needs[self._bases.index(base)][layer]
        grid = TileGrid.of(0, self.length, config.query_tile)
        forced, before = fixed_blocks(grid.starts, torch.tensor(self.length), need.shape[2], self._page, config)
        return keep(need, forced, before, config)

    def density(self, base: PrefillConfig, config: PrefillConfig, layers: Sequence[int]) -> float:
        """Attended over causal pairs of these layers, with the rule and thresholds of ``config``."""
        grid = TileGrid.of(0, self.length, config.query_tile)
        rows = grid.valid.sum(1)
        inside = sum(int(count) * (int(count) + 1) // 2 for count in rows)
        pairs = 0.0
        for layer in layers:
            kept = self.kept(base, config, layer)
            pairs += float((kept.sum((0, 2)) * rows).sum()) * self._page / self._kv_heads + inside
        return pairs / (len(layers) * causal_pairs(self.length, 0))


def knob_for(selector: Selector, needs: Needs, density: float, layers: Sequence[int]) -> float:
    """The knob at which the selector attends ``density`` of these layers, or as near as it comes."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        config = selector.turned(selector.base, middle, needs.length)
        if needs.density(selector.base, config, layers) < density:
            low = middle
        else:
            high = middle
    return (low + high) / 2
