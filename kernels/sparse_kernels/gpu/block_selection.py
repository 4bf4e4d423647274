"""Which key blocks the tiles of a batch attend, chosen on the device.

Sub-page means are scored, and blocks chosen, in one pass (:mod:`sparse_kernels.gpu.selection`). Other scores, and
shapes that it does not take, go by the rules of the CPU over :func:`sparse_kernels.gpu.block_energy.block_energy`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.cpu.block_selection import fixed_blocks, keep, thresholds_by_head
from sparse_kernels.gpu.block_energy import block_energy, check_scored
from sparse_kernels.gpu.checks import check_device, looked_at, padded_rows
from sparse_kernels.gpu.selection.ordered_means import order_means
from sparse_kernels.gpu.selection.plan import SelectionPlan, TileShape, Workspace
from sparse_kernels.gpu.selection.tiles import select_tiles
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.mean_correction import Corrections

_SUBS = (2, 4, 8)
_MOST_DIM = 256
# Two counts of blocks lie in one word.
_MOST_BLOCKS = 16384
_ROWS, _MOST_ROWS, _MOST_TILES = 128, 256, 8


class BatchSelection(NamedTuple):
    """What the tiles of a batch attend.

    Attributes:
        index: kept blocks of each KV head and tile.
        coverage: float32 ``[Hkv, tiles]``, 1 less the estimated softmax mass of what is pruned.
        corrections: what stands for pruned blocks; None where the config asks for none.
        blocks: blocks of the widest table.
    """

    index: BlockIndex  # type: ignore[assignment]  # a tuple's method is called so
    coverage: torch.Tensor
    corrections: Corrections | None
    blocks: int

    @property
    def kept(self) -> torch.Tensor:
        """The index as bool ``[Hkv, tiles, blocks]``; it waits for the device."""
        return self.index.kept(self.blocks)


def select_blocks(
    q: torch.Tensor,
    batch: PagedBatch,
    summaries: PageSummaries,
    config: PrefillConfig,
    scale: float,
    *,
    totals: torch.Tensor,
    dense: torch.Tensor | None = None,
    plan: SelectionPlan | None = None,
    workspace: Workspace | None = None,
) -> BatchSelection:
    """What :func:`sparse_kernels.select_blocks_cpu` selects, for all sequences of a batch.

    What the batch holds is looked at where it lies on a CPU; elsewhere
    :meth:`sparse_kernels.layout.batch.PagedBatch.check` looks when asked.

    Args:
        q: ``[rows, Hq, D]``.
        batch: keys and tiles.
        summaries: of the layer; not stale.
        config: score, thresholds and correction.
        scale: softmax scale, more than 0.
        totals: int ``[sequences]``, tokens of each whole prompt; more than its length in all but the last chunk.
        dense: bool ``[sequences]``, those that keep every block, such as short prompts.
        plan: of the batch and :func:`tile_shape`, for all layers; None waits for the device and makes one.
        workspace: scratch that calls on one stream share; None for one of its own.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_scored(q, batch, summaries, config)
    sequences, blocks = batch.tables.shape
    if totals.shape != (sequences,) or (dense is not None and dense.shape != (sequences,)):
        raise ValueError(f"totals, dense: must be one of each of the {sequences} sequences")
    check_device("totals, dense", q, totals, *(() if dense is None else (dense,)))
    if not scale > 0:
        raise ValueError(f"scale: must be more than 0, not {scale}")
    # Refuses those of other heads before anything is launched.
    thresholds_by_head(config, batch.keys.shape[2])
    if looked_at(q):
        # Sampled rows are scored against keys.
        reads = config.score != "sampled_rows" or config.mean_correction
        batch.check(summaries=summaries if reads else None, dense=dense)
    shape = tile_shape(
        config, q.shape[1] // batch.keys.shape[2], q.shape[2], batch.page, summaries.sub_page, q.dtype, q.device
    )
    if shape is None or blocks > _MOST_BLOCKS:
        return _by_energy(q, batch, summaries, config, scale, totals, dense)
    if plan is None:
        plan = SelectionPlan.read(batch, shape)
    elif plan.shape != shape or plan.starts.shape[1] != batch.tiles.number.numel():
        raise ValueError(f"plan: is of {plan.starts.shape[1]} tiles and {plan.shape}, the batch's are {shape}")
    workspace = workspace or Workspace(q.device)
    columns, means, value_means = order_means(batch, summaries, plan, workspace, q.dtype)
    index, coverage, weights = select_tiles(
        q, batch, columns, config, scale, plan, workspace, totals=totals, dense=dense
    )  # fmt: skip
    corrections = Corrections(means, value_means, plan.first_units, weights, shape.unit) if shape.unit else None
    return BatchSelection(index, coverage, corrections, blocks)


def tile_shape(
    config: PrefillConfig,
    group: int,
    dim: int,
    page: int,
    sub_page: int,
    dtype: torch.dtype,
    device: torch.device,
) -> TileShape | None:
    """How tiles are scored in one pass; None where blocks are chosen by the portable kernel and in torch.

    Args:
        config: score, sampled rows and correction.
        group: query heads a KV head.
        dim: of a head.
        page: tokens a page.
        sub_page: tokens a sub-page.
        dtype: of the queries.
        device: of the queries.
    """
    rows = padded_rows(-(-config.query_tile // config.query_stride) * group)
    # Tensor cores multiply no float32 without losing digits.
    multiplied = device.type == "cpu" or dtype in (torch.bfloat16, torch.float16)
    if config.score != "sub_means" or not multiplied:
        return None
    if page // sub_page not in _SUBS or dim > _MOST_DIM or rows > _MOST_ROWS:
        return None
    tiles = max(1, min(_MOST_TILES, _ROWS // rows))
    return TileShape(config.query_tile, page, page // sub_page, rows, tiles, _unit(config))


def _unit(config: PrefillConfig) -> int:
    """Blocks behind a mean of the correction; 0 for none."""
    return config.mean_blocks if config.mean_correction else 0


def _by_energy(
    q: torch.Tensor,
    batch: PagedBatch,
    summaries: PageSummaries,
    config: PrefillConfig,
    scale: float,
    totals: torch.Tensor,
    dense: torch.Tensor | None,
) -> BatchSelection:
    owner = batch.tiles.sequence.long()
    blocks = batch.tables.shape[1]
    starts = batch.tiles.number * batch.tiles.rows
    forced, before = fixed_blocks(starts, totals[owner], blocks, batch.page, config)
    if dense is not None:
        forced = forced | dense[owner][:, None]
    # Nothing is to be chosen where everything is kept anyway.
    open_tiles = (before & ~forced).any(1)
    energy = block_energy(q, batch, summaries, config, scale, open_tiles)
    whole = (totals[owner] + batch.page - 1) // batch.page
    kept = keep(energy.need, forced, before, config, whole[:, None])
    coverage = 1 - (energy.mass * (before & ~kept)).sum(-1)
    unit = _unit(config)
    corrections = Corrections.of(kept, batch, summaries, unit, q.dtype) if unit else None
    return BatchSelection(_listed(kept), coverage, corrections, blocks)


def _listed(kept: torch.Tensor) -> BlockIndex:
    """The index of bool ``[Hkv, tiles, blocks]`` with room for every block of a tile: nothing waits for the device."""
    heads, tiles, blocks = kept.shape
    places = torch.where(kept, kept.cumsum(-1) - 1, blocks)
    numbers = torch.arange(blocks, dtype=torch.int32, device=kept.device).expand_as(kept)
    listed = torch.empty(heads, tiles, blocks + 1, dtype=torch.int32, device=kept.device).scatter_(-1, places, numbers)
    starts = torch.arange(heads * tiles, dtype=torch.int32, device=kept.device).view(heads, tiles) * (blocks + 1)
    return BlockIndex(starts, kept.sum(-1, dtype=torch.int32), listed.flatten())
