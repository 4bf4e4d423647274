"""Whether the kernels are right at real sizes: sampled rows against float64, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sparse_kernels import DecodeConfig, PrefillConfig
from sparse_kernels.batch import PagedBatch
from sparse_kernels.block_index import BlockIndex
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.gpu.page_selection import page_counts, select_pages
from sparse_kernels.gpu.sparse_paged_decode import DecodeBatch, sparse_paged_decode
from sparse_kernels.mean_correction import Corrections
from sparse_kernels.measured_coverage import spread_rows

from sparsity_quality.speed.inputs import PAGE, TILE, Inputs, Shape, inputs

_ROWS = 24
BOUNDS = {torch.bfloat16: 0.005, torch.float16: 0.002, torch.float32: 1e-4}


class Check(NamedTuple):
    """One comparison.

    Attributes:
        name: of what.
        error: RMS of the difference over the RMS of what is right.
        bound: that it must not exceed.
    """

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it is right."""
        return self.error <= self.bound


def checks(shape: Shape, length: int, device: str, dtype: torch.dtype) -> Iterator[Check]:
    """Prefill over a selected index with and without correction, and over a full one; decode, sparse and whole."""
    given = inputs(shape, length, device, dtype)
    batch = PagedBatch.of([given.sequence], [length], TILE)
    config = PrefillConfig(
        score="sub_means", rule="top_k", threshold=0.2, query_tile=TILE, sink=PAGE, window=0, dense_last_tiles=0
    )  # fmt: skip
    totals = torch.tensor([length], device=device)
    kept = select_blocks(given.q, batch, given.summaries, config, given.scale, totals=totals).kept
    before = torch.arange(kept.shape[2], device=device) < batch.before[:, None]
    full = before[None].expand(kept.shape[0], -1, -1).contiguous()
    what = f"{shape}, {length} tokens"
    for name, index, corrected in (
        ("kept blocks", kept, False),
        ("corrected", kept, True),
        ("full index", full, False),
    ):
        means = Corrections.of(index, batch, given.summaries, 1, given.q.dtype)
        out = block_sparse_prefill(
            given.q, batch, BlockIndex.of(index), given.scale, corrections=means if corrected else None
        ).out
        yield Check(f"prefill, {name}, {what}", _rows_off(given, out, index, corrected), BOUNDS[dtype])
    one = inputs(shape, length, device, dtype, queries=1)
    lengths, table = torch.tensor([length], dtype=torch.int32, device=device), one.sequence.table.int()[None]
    paged = DecodeBatch(one.sequence.keys, one.sequence.values, table, lengths)
    for name, budget in (("budget", max(length // 4, 192)), ("all pages", length + PAGE)):
        decode = DecodeConfig(sparse_from=0, budget=budget, sink=64, recent=64, score="sub_pages")
        pages = select_pages(one.q, paged, one.summaries, decode, one.scale)
        out = sparse_paged_decode(one.q, paged, pages, one.scale, page_counts(paged, decode))
        attended = torch.zeros(shape.kv_heads, 1, table.shape[1], dtype=torch.bool, device=device)
        attended.scatter_(2, pages[0, :, None].long(), True)
        yield Check(f"decode, {name}, {what}", _off(out, _exact(one, [length - 1], attended, None)), BOUNDS[dtype])


def _rows_off(given: Inputs, out: torch.Tensor, kept: torch.Tensor, corrected: bool) -> float:
    """The error of rows spread over the prompt."""
    rows = spread_rows(0, given.sequence.length, _ROWS)
    tiles = rows // TILE
    own = torch.arange(kept.shape[2]) >= tiles[:, None] * TILE // PAGE
    chosen = kept[:, tiles.to(kept.device)]
    attended = chosen | own.to(kept.device)
    pruned = ~attended if corrected else None
    wanted = _exact(given._replace(q=given.q[rows.to(kept.device)]), rows.tolist(), attended, pruned)
    return _off(out[rows.to(kept.device)], wanted)


def _exact(given: Inputs, positions: list[int], attended: torch.Tensor, pruned: torch.Tensor | None) -> torch.Tensor:
    """Rows by the definition, float64 ``[R, Hq, D]``; ``pruned`` blocks as their means, of weight ``log(block)``."""
    keys, values = (part.double() for part in given.sequence.gather())
    kv_heads, blocks, page, dim = keys.shape
    q = given.q.double().view(len(positions), kv_heads, -1, dim)
    out = torch.empty_like(q)
    number = torch.arange(blocks * page, device=q.device)
    for row, position in enumerate(positions):
        for head in range(kv_heads):
            seen = attended[head, row].repeat_interleave(page) & (number <= position)
            columns, payload = keys[head].flatten(0, 1)[seen], values[head].flatten(0, 1)[seen]
            bias = torch.zeros(columns.shape[0], dtype=torch.float64, device=q.device)
            if pruned is not None:
                gone = pruned[head, row]
                columns = torch.cat([columns, keys[head, gone].mean(1)])
                payload = torch.cat([payload, values[head, gone].mean(1)])
                bias = torch.cat([bias, torch.full((int(gone.sum()),), float(page), device=q.device).double().log()])
            shares = (q[row, head] @ columns.T * given.scale + bias).softmax(-1)
            out[row, head] = shares @ payload
    return out.flatten(1, 2)


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = (found.double() - wanted).square().mean().sqrt()
    return float(difference / wanted.square().mean().sqrt())
