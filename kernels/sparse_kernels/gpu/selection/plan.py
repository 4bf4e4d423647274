"""What block selection of a batch goes by in every layer: made on the host once a pass, and scratch made once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.mean_correction import WIDTH

# Columns of one tensor-core product.
COLUMNS = 64


class TileShape(NamedTuple):
    """How tiles are scored.

    Attributes:
        tile: rows a tile.
        page: tokens a block.
        subs: columns a block.
        rows: scored rows of a tile and KV head, padded to a power of 2.
        tiles: neighbouring tiles that are scored together.
        unit: blocks behind a mean of the correction; 0 for no correction.
    """

    tile: int
    page: int
    subs: int
    rows: int
    tiles: int
    unit: int

    @property
    def blocks(self) -> int:
        """Blocks that one product scores."""
        return COLUMNS // self.subs


class SelectionPlan(NamedTuple):
    """Where what a batch's selection reads and writes lies.

    Attributes:
        shape: how tiles are scored.
        items: int32 ``[items, 2]``, a first tile and how many of its sequence are scored together; the longest first.
        first_steps: int32 ``[sequences]``, where a sequence's columns begin, in products.
        step_owner: int32 ``[steps]``, whose columns those of a product are.
        first_units: int32 ``[sequences]``, where a sequence's units begin.
        chunk_owner: int32 ``[chunks]``, whose units each 128 are.
        starts: int32 ``[Hkv, tiles]``, where the list of a tile begins.
        listed: entries of all lists, if everything were kept.
        most_steps: products of the longest sequence.
        most_blocks: blocks of the longest sequence.
    """

    shape: TileShape
    items: torch.Tensor
    first_steps: torch.Tensor
    step_owner: torch.Tensor
    first_units: torch.Tensor
    chunk_owner: torch.Tensor
    starts: torch.Tensor
    listed: int
    most_steps: int
    most_blocks: int

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        queries: Sequence[int],
        kv_heads: int,
        shape: TileShape,
        device: torch.device | str,
    ) -> SelectionPlan:
        """Of sequences of so many tokens, the last ``queries`` of which are queries; one copy to the device."""
        tile, together = shape.tile, shape.tiles
        blocks = [-(-length // shape.page) if new else 0 for length, new in zip(lengths, queries, strict=True)]
        items: list[tuple[int, int, int]] = []
        before: list[int] = []
        for length, new in zip(lengths, queries, strict=True):
            first, end = (length - new) // tile, -(-length // tile) if new else (length - new) // tile
            at = len(before)
            items += [(start, min(together, end - start), at + start - first) for start in range(first, end, together)]
            before += [number * tile // shape.page for number in range(first, end)]
        items.sort(key=lambda item: -item[0] - item[1])
        steps = [-(-count // shape.blocks) for count in blocks]
        chunks = [-(-count // (shape.unit * WIDTH)) if shape.unit else 0 for count in blocks]
        ends = list(accumulate(before, initial=0))
        parts = (
            [number for _, count, at in items for number in (at, count)],
            list(accumulate(steps, initial=0))[:-1],
            [owner for owner, count in enumerate(steps) for _ in range(count)],
            [first * WIDTH for first in list(accumulate(chunks, initial=0))[:-1]],
            [owner for owner, count in enumerate(chunks) for _ in range(count)],
            [head * ends[-1] + start for head in range(kv_heads) for start in ends[:-1]],
        )
        flat = torch.tensor([number for part in parts for number in part], dtype=torch.int32).to(device)
        ends_of_parts = list(accumulate(len(part) for part in parts))[:-1]
        item, first_steps, step_owner, first_units, chunk_owner, starts = flat.tensor_split(ends_of_parts)
        return cls(
            shape, item.view(-1, 2), first_steps, step_owner, first_units, chunk_owner, starts.view(kv_heads, -1),
            kv_heads * ends[-1], max(steps, default=0), max(blocks, default=0),
        )  # fmt: skip

    @classmethod
    def read(cls, batch: PagedBatch, shape: TileShape) -> SelectionPlan:
        """Of a batch whose lengths only the device knows: it is waited for."""
        kv_heads, device = batch.keys.shape[2], batch.keys.device
        return cls.of(batch.lengths.tolist(), batch.starts.diff().tolist(), kv_heads, shape, device)

    @property
    def units(self) -> int:
        """Rows of the units of all sequences."""
        return self.chunk_owner.numel() * WIDTH


class Workspace:
    """Scratch on one device that all layers share, and that grows by need; of one stream at a time.

    Args:
        device: where it lies.
        programs: programs of the persistent kernels a multiprocessor; on a CPU, of all.
    """

    def __init__(self, device: torch.device | str, programs: int = 2) -> None:
        self.device = torch.device(device)
        self.programs = programs
        self._parts: dict[str, torch.Tensor] = {}

    def cut(self, name: str, entries: int, dtype: torch.dtype) -> torch.Tensor:
        """At least ``entries`` of ``dtype``, in which anything may stand."""
        found = self._parts.get(name)
        nbytes = entries * dtype.itemsize
        if found is None or found.numel() < nbytes:
            # The smaller one goes first, so that both never lie there together.
            self._parts.pop(name, None)
            found = self._parts[name] = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return found[:nbytes].view(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.numel() for part in self._parts.values())
