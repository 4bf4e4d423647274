"""The product's kernels as calls without arguments: what is timed and checked, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from sparse_kernels import DecodeConfig, PageSummaries, PrefillConfig
from sparse_kernels.batch import PagedBatch
from sparse_kernels.block_index import BlockIndex
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill, implementation
from sparse_kernels.gpu.page_selection import page_counts, select_pages
from sparse_kernels.gpu.sparse_paged_decode import DecodeBatch, sparse_paged_decode
from sparse_kernels.mean_correction import Corrections

from sparsity_quality.speed.inputs import PAGE, TILE, Inputs, Shape

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
        return cls(given, PagedBatch.of([given.sequence], [length], TILE), totals)

    @property
    def before(self) -> torch.Tensor:
        """Blocks before each tile, bool ``[tiles, blocks]``."""
        return torch.arange(self.batch.tables.shape[1], device=self.given.q.device) < self.batch.before[:, None]


class Selected(NamedTuple):
    """What selection gives to attention.

    Attributes:
        index: kept blocks.
        corrections: what stands for the others.
        coverage: float32 ``[Hkv, tiles]``, the estimated share of softmax mass that is kept.
    """

    index: BlockIndex
    corrections: Corrections | None
    coverage: torch.Tensor


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
    given, batch = prompt.given, prompt.batch
    return lambda: block_sparse_prefill(given.q, batch, index, given.scale, corrections=corrected).out


def selection_call(prompt: Prompt, config: PrefillConfig) -> Callable[[], Selected]:
    """Selection: index, and means where they correct."""
    given, batch = prompt.given, prompt.batch

    def call() -> Selected:
        kept, coverage = select_blocks(given.q, batch, given.summaries, config, given.scale, totals=prompt.totals)
        corrected = corrections(prompt, kept, config.mean_blocks) if config.mean_correction else None
        return Selected(BlockIndex.of(kept), corrected, coverage)

    return call


def selected_prefill_call(prompt: Prompt, config: PrefillConfig) -> Call:
    """Selection and attention, as a worker runs them."""
    select = selection_call(prompt, config)

    def call() -> torch.Tensor:
        found = select()
        return prefill_call(prompt, found.index, found.corrections)()

    return call


def decode_call(step: Step, config: DecodeConfig) -> Call:
    """Selection of pages and attention over them."""

    def call() -> torch.Tensor:
        pages = select_pages(step.q, step.batch, step.summaries, config, step.scale)
        return sparse_paged_decode(step.q, step.batch, pages, step.scale, page_counts(step.batch, config))

    return call


def dense_decode_call(step: Step) -> Call:
    """Attention over all pages."""
    sequences, kv_heads = step.q.shape[0], step.batch.keys.shape[2]
    none = torch.zeros(sequences, kv_heads, 1, dtype=torch.int32, device=step.q.device)
    every = (-(-step.batch.lengths // step.batch.keys.shape[1])).int()
    return lambda: sparse_paged_decode(step.q, step.batch, none, step.scale, every)


def chosen_pages(step: Step, config: DecodeConfig) -> torch.Tensor:
    """What :func:`decode_call` attends, bool ``[sequences, Hkv, blocks]``."""
    pages = select_pages(step.q, step.batch, step.summaries, config, step.scale)
    counts = page_counts(step.batch, config)
    page, blocks = step.batch.keys.shape[1], step.batch.tables.shape[1]
    there = -(-step.batch.lengths // page)
    whole = (counts == there)[:, None, None]
    valid = torch.arange(pages.shape[2], device=pages.device) < counts[:, None, None]
    chosen = torch.zeros(*pages.shape[:2], blocks + 1, dtype=torch.bool, device=pages.device)
    chosen.scatter_(2, torch.where(valid, pages, blocks).long(), True)
    return torch.where(whole, torch.arange(blocks, device=pages.device) < there[:, None, None], chosen[..., :blocks])
