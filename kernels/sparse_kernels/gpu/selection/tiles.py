"""Selection of a batch's tiles: buffers, launch shape and the launch of the one pass."""

from __future__ import annotations

import functools
import math

import torch
import triton

from sparse_kernels.config import PrefillConfig
from sparse_kernels.cpu.block_selection import thresholds_by_head
from sparse_kernels.gpu.checks import generation, processors
from sparse_kernels.gpu.launches import Launcher, Rows
from sparse_kernels.gpu.selection.plan import COLUMNS, SelectionPlan, Workspace
from sparse_kernels.gpu.selection.tile_selection import select_tile_blocks
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import WIDTH
from sparse_kernels.scores.energy import headroom

_LOG2E = 1.4426950408889634
# So many blocks in registers at least: short batches take one kernel.
_LEAST_WIDTH = 512
_launch = Launcher(select_tile_blocks)
_RULES = {"max_threshold": 0, "top_p": 1, "top_k": 2}


def select_tiles(
    q: torch.Tensor,
    batch: PagedBatch,
    columns: torch.Tensor,
    config: PrefillConfig,
    scale: float,
    plan: SelectionPlan,
    workspace: Workspace,
    *,
    totals: torch.Tensor,
    dense: torch.Tensor | None = None,
) -> tuple[BlockIndex, torch.Tensor, torch.Tensor]:
    """What the CPU's :func:`sparse_kernels.select_blocks_cpu` selects by sub-page means.

    Args:
        q: ``[rows, Hq, D]``, the queries of all sequences.
        batch: where the sequences and tiles lie.
        columns: of :func:`sparse_kernels.gpu.selection.ordered_means.order_means`.
        config: rule, thresholds, exponent, sink, window and dense tiles.
        scale: softmax scale.
        plan: of the batch.
        workspace: scratch.
        totals: int ``[sequences]``, tokens of each whole prompt.
        dense: bool ``[sequences]``, those that keep every block.

    Returns:
        The index, coverage float32 ``[Hkv, tiles]``, and the weights of pruned units float16 ``[Hkv, tiles, widest]``,
        which are empty without correction.

    Raises:
        ValueError: when there are thresholds for another number of heads.
    """
    heads, dim = q.shape[1:]
    shape, kv_heads = plan.shape, batch.keys.shape[2]
    tiles, steps = batch.tiles.number.numel(), plan.most_steps
    counts = torch.empty(kv_heads, tiles, dtype=torch.int32, device=q.device)
    listed = torch.empty(plan.listed, dtype=torch.int32, device=q.device)
    coverage = torch.empty(kv_heads, tiles, device=q.device)
    # As wide as the tables, which is what attention asks for; what lies past the longest sequence is read by nobody.
    widest = -(-batch.tables.shape[1] // (shape.unit * WIDTH)) * WIDTH if shape.unit else 0
    weights = torch.empty(kv_heads, tiles, widest, dtype=torch.float16, device=q.device)
    each = _thresholds(thresholds_by_head(config, kv_heads), q.device)
    index = BlockIndex(plan.starts, counts, listed)
    if not tiles:
        return index, coverage, weights
    stored = _stored(q, config)
    rows = shape.rows * shape.tiles
    width = max(_LEAST_WIDTH, int(triton.next_power_of_2(plan.most_blocks)))
    # What one warp holds of a tile's rows, of a head or of its needs has a bound.
    warps = 4 if rows <= 128 and dim <= 128 and width <= 4096 else 8
    programs = min(plan.items.shape[0] * kv_heads, _programs(q.device, workspace.programs, warps))
    scratch = workspace.cut("weights", programs * steps * rows * shape.blocks, stored)
    maxima = workspace.cut("maxima", programs * steps * rows, torch.float32)
    needs = workspace.cut("needs", programs * 2 * shape.tiles * width, torch.float32)
    hopper = generation(q.device) >= 9
    _launch(
        (programs,),
        q, Rows(columns, columns.shape[0], dim, dim, (COLUMNS, dim)) if hopper else columns,
        scratch, maxima, needs,
        batch.lengths, batch.starts, totals, batch.lengths if dense is None else dense.view(torch.uint8),
        batch.tiles.sequence, batch.tiles.number, plan.items, plan.first_steps, each,
        plan.starts, counts, listed, coverage, weights,
        scale * _LOG2E, config.peak, math.log2(headroom(config.peak)), -(-config.sink // shape.page), config.window,
        config.dense_last_tiles, plan.items.shape[0], kv_heads, tiles, plan.step_owner.numel(), steps, widest,
        *q.stride()[:2],
        TILE=shape.tile, BLOCK=shape.page, DIM=dim, GROUP=heads // kv_heads,
        SAMPLED=-(-shape.tile // config.query_stride), STRIDE=config.query_stride, ROWS=shape.rows, TILES=shape.tiles,
        COLUMNS=COLUMNS, SUBS=shape.subs, WIDTH=width, UNIT=shape.unit, RULE=_RULES[config.rule],
        SQUARES=_squares(config.peak), HALF=q.is_cuda, DENSE=dense is not None,
        TMA=hopper, TOGETHER=q.is_cuda, STAGES=3, num_warps=warps,
    )  # fmt: skip
    return index, coverage, weights


def _stored(q: torch.Tensor, config: PrefillConfig) -> torch.dtype:
    """What a row's weights are kept in."""
    if q.dtype == torch.float32 or (config.rule == "top_k" and not q.is_cuda):
        return torch.float32
    return torch.bfloat16 if config.rule == "top_k" else torch.float16


@functools.lru_cache(maxsize=1024)
def _thresholds(each: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Kept on the device: a layer has its own, at every pass the same."""
    return torch.tensor(each, device=device)


def _squares(peak: float) -> int:
    """How often a number is squared for its power; -1 where the exponent is no power of 2."""
    power = math.log2(peak)
    return int(power) if power.is_integer() else -1


def _programs(device: torch.device, programs: int, warps: int) -> int:
    """Persistent programs; 8 warps take all registers of a multiprocessor."""
    if device.type != "cuda":
        return programs
    return processors(device) * (programs if warps == 4 else 1)
