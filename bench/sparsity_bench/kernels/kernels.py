"""The product's kernels as calls without arguments: what is timed and checked, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from sparse_kernels import DecodeConfig, PageSummaries, PrefillConfig
from sparse_kernels.gpu.block_selection import BatchSelection, select_blocks, tile_shape
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill, implementation
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace
from sparse_kernels.gpu.page_limits import PageLimits, page_capacity
from sparse_kernels.gpu.page_selection import select_pages
from sparse_kernels.gpu.selection.plan import SelectionPlan, Workspace
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import Corrections

from sparsity_bench.kernels.inputs import PAGE, TILE, Inputs, Shape

Call = Callable[[], torch.Tensor]


class Prompt(NamedTuple):
    """One prompt to prefill.

    Attributes:
        given: queries, keys and values.
        batch: the same, as kernels take it.
        totals: int ``[1]``, its length on the device.
    """

    given: Inputs
    batch: PagedBatch
    totals: torch.Tensor

    @classmethod
    def of(cls, given: Inputs) -> Prompt:
        """All of a sequence."""
        length = given.sequence.length
        totals = torch.tensor([length], device=given.q.device)
        batch = PagedBatch.of([given.sequence], [length], TILE)
        batch.check(summaries=given.summaries)
        return cls(given, batch, totals)

    @property
    def before(self) -> torch.Tensor:
        """Blocks before each tile, bool ``[tiles, blocks]``."""
        return torch.arange(self.batch.tables.shape[1], device=self.given.q.device) < self.batch.before[:, None]


class Step(NamedTuple):
    """One layer's decode step of several sequences.

    Attributes:
        q: ``[sequences, Hq, D]``.
        batch: where the sequences lie.
        summaries: of their pages.
        scale: softmax scale.
    """

    q: torch.Tensor
    batch: DecodeBatch
    summaries: PageSummaries
    scale: float


def chosen_kernel(shape: Shape, device: str, dtype: torch.dtype) -> str:
    """Which kernel attends prompts of a shape."""
    return implementation(torch.device(device), dtype, shape.dim, PAGE, TILE)


def full_index(prompt: Prompt) -> BlockIndex:
    """Every block before each tile."""
    return BlockIndex.full(prompt.batch.before, prompt.batch.keys.shape[2], prompt.batch.tables.shape[1])


def corrections(prompt: Prompt, kept: torch.Tensor, unit: int) -> Corrections:
    """Means by units of ``unit`` blocks for what is pruned."""
    return Corrections.of(kept, prompt.batch, prompt.given.summaries, unit, prompt.given.q.dtype)


def prefill_call(prompt: Prompt, index: BlockIndex, corrected: Corrections | None = None) -> Call:
    """Attention over an index."""
    index.check(prompt.batch.before)
    return lambda: _attended(prompt, index, corrected)


def _attended(prompt: Prompt, index: BlockIndex, corrected: Corrections | None) -> torch.Tensor:
    given = prompt.given
    return block_sparse_prefill(given.q, prompt.batch, index, given.scale, corrections=corrected).out


def selection_call(prompt: Prompt, config: PrefillConfig) -> Callable[[], BatchSelection]:
    """Selection: index, and means where they correct; plan and scratch are made once, as for a model's layers."""
    given, batch = prompt.given, prompt.batch
    group = given.q.shape[1] // batch.keys.shape[2]
    sizes = (group, given.q.shape[2], batch.page, given.summaries.sub_page)
    shape = tile_shape(config, *sizes, given.q.dtype, given.q.device)
    plan = None if shape is None else SelectionPlan.read(batch, shape)
    room = Workspace(given.q.device)
    return lambda: select_blocks(
        given.q, batch, given.summaries, config, given.scale, totals=prompt.totals, plan=plan, workspace=room
    )  # fmt: skip


def selected_prefill_call(prompt: Prompt, config: PrefillConfig) -> Call:
    """Selection and attention, as a worker runs them."""
    select = selection_call(prompt, config)

    def call() -> torch.Tensor:
        found = select()
        # Not by prefill_call, which waits for the device to look at the index.
        return _attended(prompt, found.index, found.corrections)

    return call


def decode_call(
    step: Step, config: DecodeConfig, workspace: DecodeWorkspace | None = None, limits: PageLimits | None = None
) -> Call:
    """Selection of pages and attention over them, the newest page summarized on the way."""
    room = workspace or decode_workspace(step, config)
    step.batch.check(step.summaries)
    return lambda: sparse_paged_decode(
        step.q, step.batch, step.summaries, config, step.scale, limits=limits, workspace=room
    )  # fmt: skip


def dense_decode_call(step: Step, workspace: DecodeWorkspace | None = None) -> Call:
    """Attention over all pages."""
    room = workspace or DecodeWorkspace.of(step.q, step.batch)
    step.batch.check()
    return lambda: paged_decode(step.q, step.batch, step.scale, workspace=room)


def decode_workspace(step: Step, config: DecodeConfig) -> DecodeWorkspace:
    """Buffers that all layers of a model share."""
    return DecodeWorkspace.of(step.q, step.batch, page_capacity(config, step.batch.keys.shape[1]))


def chosen_pages(step: Step, config: DecodeConfig) -> torch.Tensor:
    """What :func:`decode_call` attends, bool ``[sequences, Hkv, blocks]``."""
    pages = select_pages(step.q, step.batch, step.summaries, config, step.scale)
    page, tables = step.batch.keys.shape[1], step.batch.tables
    there = -(-step.batch.lengths // page)[:, None, None]
    before = torch.arange(tables.shape[1], device=tables.device) < there
    # Where all pages are attended none is written down.
    whole = (step.batch.lengths[:, None, None] < config.sparse_from) | (there <= pages.shape[2])
    marked = torch.zeros(*pages.shape[:2], step.batch.keys.shape[0], dtype=torch.bool, device=tables.device)
    marked.scatter_(2, torch.where(whole, 0, pages).long(), True)
    chosen = marked.gather(2, tables.long().clamp(0, marked.shape[2] - 1)[:, None].expand(-1, pages.shape[1], -1))
    return (chosen | whole) & before
