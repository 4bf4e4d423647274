"""How strongly a query tile attends each key block, estimated: the scores that block selection can go by."""

from __future__ import annotations

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores.columns import antidiagonal, block_means, by_columns, sampled_rows, second_order, sub_means
from sparse_kernels.scores.energy import Energy, Keys, Score
from sparse_kernels.scores.lines import flex, vertical_slash
from sparse_kernels.scores.patterns import lsh_buckets, random_blocks, strided_blocks, window_only

SCORES: dict[str, Score] = {
    kind.__name__: by_columns(kind) for kind in (sampled_rows, sub_means, block_means, second_order)
} | {
    score.__name__: score
    for score in (antidiagonal, vertical_slash, flex, window_only, random_blocks, strided_blocks, lsh_buckets)
}


def block_energy_cpu(q: torch.Tensor, at: Keys, grid: TileGrid, config: PrefillConfig, scale: float) -> Energy:
    """How strongly each tile attends each block, by ``config.score``.

    Args:
        q: ``[tiles, tile, Hq, D]``, queries laid on ``grid``.
        at: the keys, all blocks up to the last row's.
        grid: where the rows lie.
        config: score, sampled rows, sink and exponent.
        scale: softmax scale.
    """
    return SCORES[config.score](q, at, grid, config, scale)


__all__ = ["SCORES", "Energy", "Keys", "Score", "block_energy_cpu"]
