"""A forward batch as the kernels for GPUs take it: laid out on the host, and brought to the device by one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sparse_kernels.gpu.decode_batch import DecodeWorkspace
from sparse_kernels.layout.batch import BatchTiles

from sparsity_worker.plugin.attention import Spans
from sparsity_worker.plugin.host_device import upload
from sparsity_worker.profiles.profile import Profile

_ALIGNED_BLOCKS = 16


class TierRows(NamedTuple):
    """What of a prefill batch is of one tier: its blocks are chosen by that tier's profile.

    Attributes:
        tier: its place among the engine's.
        mine: which requests are.
        dense: whether all of these attend everything, in whatever layer.
        tiles: theirs.
    """

    tier: int
    mine: list[bool]
    dense: bool
    tiles: BatchTiles


class Batch(NamedTuple):
    """A batch on the device.

    Attributes:
        spans: the same on the host.
        decode: whether each request has one new token that is decoded.
        dense_host: requests that attend everything: prefill that is short, decode in a reasoning span, the dense tier.
        tables: int32 ``[requests, blocks]``, physical pages.
        lengths: int32 ``[requests]``.
        starts: int32 ``[requests + 1]``, where each one's rows begin.
        totals: int32 ``[requests]``, whole prompts.
        dense: bool ``[requests]``, the same as ``dense_host``.
        tiers: int32 ``[requests]``, places of their tiers.
        written: int32, physical pages that the new tokens touch and somebody reads summaries of.
        filled: int32, tokens in each of these.
        tiles: of prefill.
        by_tier: the same tiles by tier, those of one tier in a batch of no other.
        workspace: buffers of decode under a CUDA graph.
    """

    spans: Spans
    decode: bool
    dense_host: list[bool]
    tables: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    totals: torch.Tensor
    dense: torch.Tensor
    tiers: torch.Tensor
    written: torch.Tensor
    filled: torch.Tensor
    tiles: BatchTiles
    by_tier: tuple[TierRows, ...] = ()
    workspace: DecodeWorkspace | None = None

    @classmethod
    def of(cls, spans: Spans, decode: bool, profiles: Sequence[Profile], pool: torch.Tensor) -> Batch:
        """Tables, tiles and written pages, on the device; waits for nothing.

        Args:
            spans: the requests.
            decode: whether each has one new token that is decoded.
            profiles: of the tiers.
            pool: slots of each request's tokens, ``[requests, context]``.
        """
        page, device = profiles[0].block_size, pool.device
        new = np.array(spans.new, dtype=np.int64)
        # A step that runs ahead of what its request may still generate can be one token past the context.
        length = np.minimum(np.array(spans.lengths, dtype=np.int64), pool.shape[1])
        tiers = [prompt.tier for prompt in spans.prompts]
        read = np.array([not profiles[tier].dense for tier in tiers], dtype=bool)
        first = (length - new) // page
        touched = np.where((new > 0) & read, (length - 1) // page + 1 - first, 0)
        owner = np.repeat(np.arange(len(length)), touched)
        block = first[owner] + np.arange(len(owner)) - np.repeat(touched.cumsum() - touched, touched)
        flags = dense_rows(spans, profiles, decode)
        tiles = BatchTiles.of(*([], []) if decode else (spans.lengths, spans.new), shared_tile(profiles))
        groups = [] if decode else _by_tier(spans, tiers, flags, profiles, tiles)
        parts = [part for each in (tiles, *(group.tiles for group in groups)) for part in each[2:]]
        slots, owners, blocks, filled, lengths, starts, totals, dense, places, *moved = upload(
            device, spans.slots, owner, block, np.minimum(page, length[owner] - block * page), length,
            [0, *new.cumsum()], [prompt.length for prompt in spans.prompts], flags, tiers, *parts,
        )  # fmt: skip
        there = [found.view(part.shape) for found, part in zip(moved, parts, strict=True)]
        tiles = BatchTiles(*tiles[:2], *there[:4])
        by_tier = tuple(
            group._replace(tiles=BatchTiles(*group.tiles[:2], *there[at : at + 4]))
            for at, group in zip(range(4, len(there), 4), groups, strict=True)
        )
        # Kernels have variants for rows that begin at 16 bytes and that do not, and decode's for widths.
        widest = -(-max(spans.lengths, default=1) // (_ALIGNED_BLOCKS * page)) * _ALIGNED_BLOCKS * page
        tables = (pool[slots.long(), : None if decode else widest : page] // page).int()
        return cls(
            spans, decode, flags, tables, lengths, starts, totals, dense.bool(), places,
            tables[owners.long(), blocks.long()], filled, tiles, by_tier,
        )  # fmt: skip


def dense_rows(spans: Spans, profiles: Sequence[Profile], decode: bool) -> list[bool]:
    """Which requests attend everything, as far as the host knows."""
    pairs = [(prompt, profiles[prompt.tier]) for prompt in spans.prompts]
    return [
        own.dense or (each.reasoning if decode else not each.reads_sparsely(own.prefill, length))
        for (each, own), length in zip(pairs, spans.lengths, strict=True)
    ]


def shared_tile(profiles: Sequence[Profile]) -> int:
    """Rows of a tile where everything is attended: those of the sparsest tier, for which its kernels are made."""
    return profiles[-1].prefill.query_tile


def _by_tier(
    spans: Spans, tiers: Sequence[int], flags: Sequence[bool], profiles: Sequence[Profile], whole: BatchTiles
) -> list[TierRows]:
    groups = []
    for tier in sorted(set(tiers)):
        mine = [own == tier for own in tiers]
        dense = all(flag for flag, own in zip(flags, mine, strict=True) if own)
        tile = shared_tile(profiles) if dense else profiles[tier].prefill.query_tile
        alone = all(mine) and tile == whole.rows
        tiles = whole if alone else BatchTiles.of(spans.lengths, spans.new, tile, only=mine)
        groups.append(TierRows(tier, mine, dense, tiles))
    return groups
