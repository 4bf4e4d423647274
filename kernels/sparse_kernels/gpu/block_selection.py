"""Which key blocks the tiles of a batch attend, chosen on the device: the rules of the CPU over the Triton scores."""

from __future__ import annotations

import torch

from sparse_kernels.batch import PagedBatch
from sparse_kernels.config import PrefillConfig
from sparse_kernels.gpu.block_energy import block_energy
from sparse_kernels.selection import BlockSelection, fixed_blocks, keep
from sparse_kernels.summaries import PageSummaries


def select_blocks(
    q: torch.Tensor,
    batch: PagedBatch,
    summaries: PageSummaries,
    config: PrefillConfig,
    scale: float,
    *,
    totals: torch.Tensor,
    dense: torch.Tensor | None = None,
) -> BlockSelection:
    """What :func:`sparse_kernels.select_blocks` selects, for all sequences of a batch.

    Args:
        q: ``[rows, Hq, D]``.
        batch: keys and tiles.
        summaries: of the layer; not stale.
        config: score and thresholds.
        scale: softmax scale.
        totals: int ``[sequences]``, tokens of each whole prompt; more than its length in all but the last chunk.
        dense: bool ``[sequences]``, those that keep every block, such as short prompts.

    Returns:
        The index; coverage is 1 less the mass of what is pruned.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    owner = batch.tiles.sequence.long()
    blocks = batch.tables.shape[1]
    starts = batch.tiles.number * batch.tiles.rows
    forced, before = fixed_blocks(starts, totals[owner], blocks, batch.page, config)
    if dense is not None:
        forced = forced | dense[owner][:, None]
    # Nothing is to be chosen where everything is kept anyway.
    open_tiles = (before & ~forced).any(1)
    energy = block_energy(q, batch, summaries, config, scale, open_tiles)
    there = (batch.lengths[owner] + batch.page - 1) // batch.page
    kept = keep(energy.need, forced, before, config, there[:, None])
    return BlockSelection(kept, 1 - (energy.mass * (before & ~kept)).sum(-1))
