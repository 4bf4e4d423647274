"""Which key blocks a query tile attends: a rule over a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.scores import Keys, block_energy_cpu


class BlockSelection(NamedTuple):
    """Blocks kept for each (KV head, query tile), out of those that lie wholly before the tile.

    Attributes:
        kept: bool ``[Hkv, tiles, blocks]``; False from the tile's own blocks on, which are always attended.
        coverage: float32 ``[Hkv, tiles]``, estimated softmax mass on the kept blocks and the tile's own.
    """

    kept: torch.Tensor
    coverage: torch.Tensor


def max_threshold(
    need: torch.Tensor, given: torch.Tensor, threshold: torch.Tensor, blocks: torch.Tensor
) -> torch.Tensor:
    """Blocks with at least ``threshold`` times the need of the tile's strongest (FlashPrefill, arXiv 2608.19758)."""
    return need >= threshold * need.amax(-1, keepdim=True)


def top_p(need: torch.Tensor, given: torch.Tensor, threshold: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The strongest blocks that bring what is kept of the tile's need to ``threshold`` (FlexPrefill, arXiv 2502.20766).

    Those ``given``, bool ``[tiles, blocks]``, count first: they are attended whatever the rule says. Of equals the
    earlier come first.
    """
    base = (need * given).sum(-1, keepdim=True)
    rest, order = need.masked_fill(given, 0.0).sort(dim=-1, descending=True, stable=True)
    # Sums of shares may pass one by rounding: 1 stands for all.
    wanted = ((base + rest.cumsum(-1) - rest < threshold) | (threshold >= 1)) & (rest > 0)
    return torch.zeros_like(wanted).scatter(-1, order, wanted)


def top_k(need: torch.Tensor, given: torch.Tensor, threshold: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Equally many of the strongest blocks for every tile, ``threshold`` of all blocks (MoBA, arXiv 2502.13189).

    Of equals the earlier come first. Those ``given`` come on top.
    """
    rest, order = need.masked_fill(given, 0.0).sort(dim=-1, descending=True, stable=True)
    first = torch.arange(need.shape[-1], device=need.device) < (threshold * blocks).round()
    return torch.zeros_like(given.expand_as(need)).scatter(-1, order, first & (rest > 0))


Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# What tiles need of each block, float32 [Hkv, tiles, blocks]; what is kept anyway, bool [tiles, blocks]; one threshold
# for each KV head, float32 [Hkv, 1, 1]; and the blocks that there are, int, one number or [tiles, 1].
RULES: dict[str, Rule] = {rule.__name__: rule for rule in (max_threshold, top_p, top_k)}


def select_blocks_cpu(
    q: torch.Tensor,
    at: Keys,
    grid: TileGrid,
    total: int,
    config: PrefillConfig,
    scale: float,
) -> BlockSelection:
    """Select key blocks by what :func:`sparse_kernels.scores.block_energy_cpu` says that a tile needs.

    Sink and window blocks are always kept.

    Args:
        q: ``[tiles, tile, Hq, D]``, queries laid on ``grid``.
        at: keys and their summaries.
        grid: where the rows lie.
        total: tokens of the whole prompt; its last tiles may be dense.
        config: score and thresholds.
        scale: softmax scale.

    Raises:
        ValueError: when the keys do not cover the grid's rows, or a tile is not whole blocks.
    """
    blocks, block = at.keys.shape[1], at.block
    if blocks * block < grid.prefix + grid.queries:
        raise ValueError(f"at: {blocks} blocks of {block} do not cover {grid.prefix + grid.queries} keys")
    if grid.tile % block:
        raise ValueError(f"query_tile: {grid.tile} must be a multiple of the block size {block}")
    mass, need = block_energy_cpu(q, at, grid, config, scale)
    forced, before = fixed_blocks(grid.starts, torch.tensor(total), blocks, block, config)
    # Of the whole prompt, so that a tile keeps as many whatever chunk it is read in.
    kept = keep(need, forced, before, config, torch.tensor(-(-total // block), device=need.device))
    return BlockSelection(kept, (mass * (kept | ~before)).sum(-1))


def keep(
    need: torch.Tensor,
    forced: torch.Tensor,
    before: torch.Tensor,
    config: PrefillConfig,
    blocks: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a configuration keeps of the blocks before each tile, bool ``[Hkv, tiles, blocks]``.

    Args:
        need: float32 ``[Hkv, tiles, blocks]``, what tiles need of each block.
        forced: bool ``[tiles, blocks]``, kept anyway.
        before: bool ``[tiles, blocks]``, wholly before the tile.
        config: rule and thresholds.
        blocks: int, one or ``[tiles, 1]``, blocks of each tile's whole prompt; None takes all that there are.
    """
    each = thresholds(config, need.shape[0]).to(need.device)
    there = torch.tensor(need.shape[2], device=need.device) if blocks is None else blocks
    return (RULES[config.rule](need, forced | ~before, each, there) | forced) & before


def thresholds(config: PrefillConfig, kv_heads: int) -> torch.Tensor:
    """Each KV head's threshold, float32 ``[Hkv, 1, 1]``.

    Raises:
        ValueError: when there are thresholds for another number of heads.
    """
    return torch.tensor(thresholds_by_head(config, kv_heads))[:, None, None]


def thresholds_by_head(config: PrefillConfig, kv_heads: int) -> tuple[float, ...]:
    """One threshold for each KV head.

    Raises:
        ValueError: when there are thresholds for another number of heads.
    """
    each = config.head_thresholds or (config.threshold,) * kv_heads
    if len(each) != kv_heads:
        raise ValueError(f"head_thresholds: are {len(each)}, but there are {kv_heads} KV heads")
    return each


def fixed_blocks(
    starts: torch.Tensor, totals: torch.Tensor, blocks: int, block: int, config: PrefillConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is kept whatever a score says, and what there is to choose from: blocks wholly before the tile.

    Args:
        starts: int ``[tiles]``, position of each tile's first row.
        totals: int, one or ``[tiles]``: tokens of the whole prompt, whose last tiles may be dense.
        blocks: blocks there are.
        block: keys a block.
        config: tile, sink, window and dense tiles.

    Returns:
        Two bool ``[tiles, blocks]``.
    """
    starts = starts[:, None]
    index = torch.arange(blocks, device=starts.device)[None]
    before = index < starts // block
    forced = (index < -(-config.sink // block)) | (index >= (starts - config.window).clamp_min(0) // block)
    if config.dense_last_tiles:
        last_tile = (totals.view(-1, 1) - 1) // config.query_tile
        forced |= starts // config.query_tile > last_tile - config.dense_last_tiles
    return forced, before
