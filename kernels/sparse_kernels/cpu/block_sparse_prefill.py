"""Block-sparse prefill on the CPU: every pruned block is work not done."""

from __future__ import annotations

import math

import torch

from sparse_kernels.config import PrefillConfig
from sparse_kernels.cpu.block_selection import BlockSelection, select_blocks_cpu
from sparse_kernels.cpu.partial_softmax import flash, merged
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.measured_coverage import measured_coverage, spread_rows
from sparse_kernels.scores import Keys
from sparse_kernels.stats import AttentionStats, causal_pairs

# Large enough to fill a call, small enough that its buffers stay in the cache.
_TILES_AT_ONCE = 16
# torch's CPU flash attention takes half as long when the number of keys is a multiple of this.
_COLUMNS = 32


def block_sparse_prefill_cpu(
    q: torch.Tensor,
    sequence: PagedSequence,
    summaries: PageSummaries,
    config: PrefillConfig,
    scale: float,
    *,
    total: int | None = None,
    selection: BlockSelection | None = None,
    measured_rows: int = 0,
    measured_from: int = 0,
) -> tuple[torch.Tensor, AttentionStats]:
    """Causal attention of ``q`` over the selected key blocks of a paged sequence.

    A tile attends its own keys in one causal pass over many tiles, when ``config.mean_correction`` is on the means of
    what is pruned in one masked pass, and its kept blocks in one unmasked pass a tile and KV head; they are merged by
    their log-sum-exp (FlashAttention-2, arXiv 2307.08691, section 3.1).

    Args:
        q: ``[T, Hq, D]``, the last T tokens of ``sequence``, whose keys are written already.
        sequence: keys and values, prefix included.
        summaries: page summaries of the same layer; stale ones are refreshed.
        config: selection and correction.
        scale: softmax scale.
        total: tokens of the whole prompt; more than ``sequence.length`` in all but the last chunk.
        selection: an index to use in place of selecting one.
        measured_rows: rows whose coverage is measured against every key.
        measured_from: position of the first of ``q``'s rows that may be measured.

    Returns:
        Output ``[T, Hq, D]`` in q's dtype, and what was attended.

    Raises:
        ValueError: when q holds more rows than the sequence has tokens, or heads or tiles do not divide.
    """
    queries, heads, dim = q.shape
    group = sequence.group(heads)
    kv_heads, block = sequence.kv_heads, sequence.page
    prefix = sequence.length - queries
    if prefix < 0:
        raise ValueError(f"q: {queries} rows exceed the sequence's {sequence.length} tokens")
    grid = TileGrid.of(prefix, queries, config.query_tile)
    laid = grid.split(q)
    summaries.refresh(sequence)
    keys, values = sequence.gather()
    if selection is None:
        at = Keys.of(keys, summaries, sequence.table)
        selection = select_blocks_cpu(laid, at, grid, total or sequence.length, config, scale)
    tiles = laid.view(grid.tiles, grid.tile, kv_heads, group, dim).permute(2, 0, 3, 1, 4)
    own_keys, own_values = (_own(cache, grid) for cache in (keys, values))
    unit = config.mean_blocks
    key_means, value_means = (
        _unit_means(mean[sequence.table], unit, q.dtype) for mean in (summaries.mean, summaries.value_mean)
    )
    blocks = keys.shape[1]
    before = torch.arange(blocks)[None] < grid.starts[:, None] // block
    correction = _correction(before & ~selection.kept, before, unit, block, key_means.shape[1], q.dtype)
    out = torch.empty_like(laid)
    o_tiles = out.view(grid.tiles, grid.tile, kv_heads, group, dim).permute(2, 0, 3, 1, 4)
    for first in range(0, grid.tiles, _TILES_AT_ONCE):
        part = slice(first, first + _TILES_AT_ONCE)
        rows = tiles[:, part].contiguous()
        # No tile of this part looks further back than the part's last one.
        seen = (grid.first + min(part.stop, grid.tiles) - 1) * grid.tile // block // unit
        seen = seen if config.mean_correction else 0
        seen = -(-seen // _COLUMNS) * _COLUMNS
        found = _own_keys(rows, own_keys[:, part], own_values[:, part], scale)
        if seen:
            means = _means(rows, key_means[:, :seen], value_means[:, :seen], correction[:, part, :seen], scale)
            found = merged(found, means)
        o_tiles[:, part], _ = merged(found, _kept_blocks(rows, keys, values, selection.kept[:, part], scale))
    out = grid.join(out)

    valid = grid.valid.sum(1)
    kept = int((selection.kept.sum((0, 2)) * valid).sum()) * block * group
    inside = heads * _own_pairs(grid)
    coverage = float((selection.coverage.mean(0) * valid).sum()) / queries
    stats = AttentionStats(kept + inside, heads * causal_pairs(queries, prefix), coverage, heads * queries)
    begin = max(prefix, measured_from)
    if measured_rows and begin < sequence.length:
        positions = spread_rows(begin, sequence.length - begin, measured_rows)
        attended = (selection.kept | ~before)[:, positions // grid.tile - grid.first]
        share = measured_coverage(q[positions - prefix], positions, keys, attended, scale)
        stats = stats._replace(measured=share, measured_rows=positions.numel())
    return out, stats


def _unit_means(mean: torch.Tensor, unit: int, dtype: torch.dtype) -> torch.Tensor:
    """Means ``[blocks, Hkv, D]`` as those of units ``[Hkv, columns, D]``, zeros up to a full multiple of columns."""
    blocks, kv_heads, dim = mean.shape
    whole = blocks // unit
    padded = torch.zeros(kv_heads, -(-max(whole, 1) // _COLUMNS) * _COLUMNS, dim, dtype=dtype)
    padded[:, :whole] = mean[: whole * unit].view(whole, unit, kv_heads, dim).mean(1).transpose(0, 1)
    return padded


def _correction(
    pruned: torch.Tensor, before: torch.Tensor, unit: int, block: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """What the means' scores are raised by, ``[Hkv, tiles, columns]``: log of the pruned keys of each unit.

    Args:
        pruned: bool ``[Hkv, tiles, blocks]``.
        before: bool ``[tiles, blocks]``, blocks wholly before each tile.
        unit: blocks behind a mean; those that no whole unit before the tile holds are not corrected.
        block: keys a block.
        columns: units and padding.
        dtype: of the queries.
    """
    whole = pruned.shape[2] // unit
    counts = pruned[..., : whole * unit].reshape(*pruned.shape[:2], whole, unit).sum(-1)
    counts = counts * (torch.arange(whole) < before.sum(1, keepdim=True) // unit)
    return torch.nn.functional.pad((counts * float(block)).log(), (0, columns - whole), value=-math.inf).to(dtype)


def _own_pairs(grid: TileGrid) -> int:
    """Causal pairs inside the tiles, for one head."""
    positions = torch.arange(grid.tiles * grid.tile).view(grid.tiles, grid.tile) % grid.tile + 1
    return int((positions * grid.valid).sum())


def _own(cache: torch.Tensor, grid: TileGrid) -> torch.Tensor:
    """The tiles' own keys or values, ``[Hkv, tiles, tile, D]``, zero past the end of the sequence."""
    kv_heads, dim = cache.shape[0], cache.shape[-1]
    first, length = grid.first * grid.tile, grid.tiles * grid.tile
    own = cache.new_zeros(kv_heads, length, dim)
    written = cache.flatten(1, 2)[:, first : grid.prefix + grid.queries]
    own[:, : written.shape[1]] = written
    return own.view(kv_heads, grid.tiles, grid.tile, dim)


def _own_keys(
    tiles: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each tile over its own keys ``[Hkv, tiles, tile, D]``, causally.

    Returns:
        ``[Hkv, tiles, group, tile, D]`` and float32 log-sum-exp ``[Hkv, tiles, group, tile]``.
    """
    group = tiles.shape[2]
    columns = (each.flatten(0, 1)[:, None].expand(-1, group, -1, -1) for each in (keys, values))
    out, lse = flash(tiles.flatten(0, 1), *columns, 0.0, True, scale=scale)
    return out.view(tiles.shape), lse.view(tiles.shape[:-1])


def _means(
    tiles: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, correction: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each tile over the means that stand for what it pruned; shapes as in :func:`_own_keys`.

    Args:
        tiles: ``[Hkv, tiles, group, tile, D]``.
        keys: means ``[Hkv, units, D]``.
        values: likewise.
        correction: added to the scores, ``[Hkv, tiles, units]``.
        scale: softmax scale.
    """
    kv_heads, count, group, tile, dim = tiles.shape
    rows = tiles.view(kv_heads, count, group * tile, dim)
    columns = (each[:, None].expand(-1, count, -1, -1) for each in (keys, values))
    out, lse = flash(rows, *columns, 0.0, False, attn_mask=correction[:, :, None], scale=scale)
    # Of a row that sees nothing torch says that its sum is one.
    lse.masked_fill_((correction == -math.inf).all(-1, keepdim=True), -math.inf)
    return out.view(tiles.shape), lse.view(tiles.shape[:-1])


def _kept_blocks(
    tiles: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kept: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each tile over the blocks it kept; shapes as in :func:`_own_keys`.

    Args:
        tiles: ``[Hkv, tiles, group, tile, D]``.
        keys: ``[Hkv, blocks, block, D]``.
        values: likewise.
        kept: bool ``[Hkv, tiles, blocks]``.
        scale: softmax scale.
    """
    kv_heads, count, group, tile, dim = tiles.shape
    blocks = keys.shape[1]
    flat_keys, flat_values = keys.view(kv_heads * blocks, -1), values.view(kv_heads * blocks, -1)
    rows = tiles.view(kv_heads * count, 1, 1, group * tile, dim)
    out, lse = torch.empty_like(rows), torch.full(rows.shape[:-1], -math.inf)
    where = kept.flatten(0, 1).nonzero()
    counts = kept.sum(-1).flatten().tolist()
    chosen = where[:, 0] // count * blocks + where[:, 1]
    # What one tile attends stays in the cache between its gathering and its use.
    room = [flat.new_empty(max(counts, default=0), flat.shape[1]) for flat in (flat_keys, flat_values)]
    for at, (size, index) in enumerate(zip(counts, torch.split(chosen, counts), strict=True)):
        if size:
            found = (
                torch.index_select(flat, 0, index, out=each[:size]).view(1, 1, -1, dim)
                for flat, each in zip((flat_keys, flat_values), room, strict=True)
            )
            out[at], lse[at] = flash(rows[at], *found, scale=scale)
        else:
            out[at] = 0.0
    return out.view(tiles.shape), lse.view(tiles.shape[:-1])
