"""Decode beside dense attention: selection included, replayed from a CUDA graph of as many layers as fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from sparse_kernels import DecodeConfig
from sparse_kernels.gpu.decode_batch import DecodeBatch
from sparse_kernels.gpu.page_limits import PageLimits
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparsity_serving.benchmark import Row, against, judged

from sparsity_bench.kernels import dense, gate, goals
from sparsity_bench.kernels.gate import Check, Gate
from sparsity_bench.kernels.inputs import PAGE, Inputs, Shape, inputs
from sparsity_bench.kernels.kernels import Step, chosen_pages, decode_call, decode_workspace, dense_decode_call
from sparsity_bench.kernels.ops.block_sparse_prefill import BASE
from sparsity_bench.kernels.timing import Clock

# What decode attends at most, tokens, and which shipped tier it is of.
BUDGETS = {2048: "aggressive", 4096: "moderate", 512: "512 tokens"}
# Blocks of a serving engine's table, whatever the sequences' lengths; past their ends stand zeros.
_TABLE = 2048
_MOST_LAYERS = 16
_OURS, _EVERYTHING = "ours, all pages", DecodeConfig(sparse_from=2**30)
_RAGGED = (1, 63, 64, 65, 2047, 2049, 3001, 4096)


class Load(NamedTuple):
    """What is decoded at once.

    Attributes:
        sequences: in a batch.
        length: tokens of each.
        budgets: tokens that a KV head attends.
        mixed: whether a step is timed, too, in which every second sequence attends everything.
        spread: whether the first budget is timed by `spread` scores, too.
    """

    sequences: int
    length: int
    budgets: tuple[int, ...] = (2048, 4096)
    mixed: bool = False
    spread: bool = False


class Decodes:
    """Cached keys of one length, cut into loads.

    Args:
        shape: heads.
        length: tokens of a sequence.
        sequences: that the cache holds.
        clock: by which loads are timed.
        dtype: of queries, keys and values.
    """

    def __init__(self, shape: Shape, length: int, sequences: int, clock: Clock, dtype: torch.dtype) -> None:
        self.shape, self.length, self.sequences, self.clock = shape, length, sequences, clock
        self._dtype = dtype
        # Goals are of one shape.
        self._judged = shape == BASE and dtype == torch.bfloat16
        self._given = inputs(shape, length * sequences, clock.device, dtype, queries=sequences)
        self._tables = tables(self._given, length, sequences)

    def steps(self, count: int) -> list[Step]:
        """A step of ``count`` sequences for each of several layers, which share nothing."""
        given, device = self._given, self._given.q.device
        lengths = torch.full((count,), self.length, dtype=torch.int32, device=device)
        found = []
        for first in range(0, min(self.sequences, count * _MOST_LAYERS) - count + 1, count):
            part = slice(first, first + count)
            batch = DecodeBatch(given.sequence.keys, given.sequence.values, self._tables[part], lengths)
            found.append(Step(given.q[part], batch, given.summaries, given.scale))
        return found

    def rows(self, load: Load, passing: Gate) -> Iterator[Row]:
        """What one step of a layer takes."""
        steps = self.steps(load.sequences)
        what = f"{self.shape.of(self._dtype)}, {load.sequences} x {load.length} tokens"
        found: dict[str, float] = {}
        room = decode_workspace(steps[0], DecodeConfig(budget=max(load.budgets), recent=64))
        ours = dense.Decode(_OURS, [dense_decode_call(step, room) for step in steps], lambda out: out)
        for name, calls, view in (*dense.decodes(steps), ours):
            if not passing.holds(*_right(f"decode, {name}, {what}", steps[0], _EVERYTHING, view(calls[0]()))):
                continue
            try:
                found[name] = self.clock.layers(calls)
            except RuntimeError as error:
                if name == _OURS:
                    raise
                print(f"{name} cannot be captured: {error}".splitlines()[0], flush=True)
        if not found:
            return
        for name, taken in found.items():
            yield Row(f"dense decode, {name}", what, taken * 1e3, "us a layer")
        fastest = min(found, key=lambda name: found[name])
        baseline = fastest, found[fastest] * 1e3
        cute = found.get(dense.CUTE_PAGED)
        for budget in load.budgets:
            for row in self._sparse(load, budget, steps, baseline, what, passing):
                yield row
                if row.unit == "us a layer" and cute is not None:
                    again = Row(f"{row.name}, beside {dense.CUTE_PAGED}", what, row.value, row.unit)
                    yield against(again, dense.CUTE_PAGED, cute * 1e3)
        if load.spread:
            yield from self._sparse(load, load.budgets[0], steps, baseline, what, passing, score="spread")
        if load.mixed:
            yield from self._mixed(load, steps, baseline, what, passing)

    def _mixed(
        self, load: Load, steps: Sequence[Step], baseline: tuple[str, float], what: str, passing: Gate
    ) -> Iterator[Row]:
        """One launch for sequences of two tiers: the dense ones wait for no longer than among their like."""
        config, name = configured(load.budgets[0], load.length), "decode, every second sequence dense"
        kinds = torch.arange(load.sequences, dtype=torch.int32, device=steps[0].q.device) % 2
        limits, room = PageLimits.of(kinds, [None, config], PAGE), decode_workspace(steps[0], config)
        calls = [decode_call(step, config, room, limits) for step in steps]
        pages = torch.where((kinds == 0)[:, None, None], _every_page(steps[0]), chosen_pages(steps[0], config))
        if passing.holds(*gate.decode(f"{name}, {what}", steps[0], config, calls[0](), pages)):
            row = against(Row(name, what, self.clock.layers(calls) * 1e3, "us a layer"), *baseline)
            assert row.ratio is not None
            wanted = judged(row, f">= {goals.MIXED:g} times", met=row.ratio >= goals.MIXED)
            yield wanted if self._judged else row

    def _sparse(
        self,
        load: Load,
        budget: int,
        steps: Sequence[Step],
        baseline: tuple[str, float],
        what: str,
        passing: Gate,
        score: str = "sub_pages",
    ) -> Iterator[Row]:
        config = replace(configured(budget, load.length), score=score)
        usual = score == "sub_pages"
        name = f"decode, {BUDGETS.get(budget, budget)}{'' if usual else f', {score}'}"
        room = decode_workspace(steps[0], config)
        calls = [decode_call(step, config, room) for step in steps]
        if not passing.holds(*_right(f"{name}, {what}", steps[0], config, calls[0]())):
            return
        taken = self.clock.layers(calls)
        row = against(Row(name, what, taken * 1e3, "us a layer"), *baseline)
        judging = self._judged and usual
        wanted = goals.DECODE.get(budget, {}).get((load.sequences, load.length)) if judging else None
        ratio = baseline[1] / (taken * 1e3)
        yield row if wanted is None else judged(row, f">= {wanted:g} times", met=ratio >= wanted)
        tbps = _bytes(self.shape, config, load, self._given) / (taken * 1e-3) / 1e12
        share = tbps / self.clock.copy_tbps
        # More than a copy moves says that the copy, or what decode reads, was counted wrong.
        if not passing.holds(Check(f"{name}, share of a copy, {what}", share, 1.0)):
            return
        rate = Row(f"{name}, rate", what, tbps, "TB/s", "a device copy", self.clock.copy_tbps, share)
        bounded = load.sequences >= goals.BANDWIDTH_FROM and judging
        yield judged(rate, f">= {goals.BANDWIDTH:g} times", met=share >= goals.BANDWIDTH) if bounded else rate


def tables(given: Inputs, length: int, sequences: int) -> torch.Tensor:
    """Cuts the pages of one long sequence into tables of several, int32 ``[sequences, blocks]``."""
    blocks = -(-length // PAGE)
    cut = given.sequence.table[: blocks * sequences].view(sequences, blocks).int()
    return torch.nn.functional.pad(cut, (0, max(0, _TABLE - blocks) if cut.is_cuda else 0)).contiguous()


def configured(budget: int, length: int) -> DecodeConfig:
    """The settings of a tier that attends ``budget`` tokens."""
    recent = min(512, budget // 4, length // 4)
    return DecodeConfig(sparse_from=0, budget=min(budget, length), sink=64, recent=recent, score="sub_pages")


def ragged_checks(shape: Shape, clock: Clock, dtype: torch.dtype) -> Iterator[Check]:
    """Sequences of odd lengths, whose pages hold NaN past their ends."""
    length = max(_RAGGED) if clock.device != "cpu" else 512
    lengths = [min(each, length) for each in _RAGGED]
    given = inputs(shape, length * len(lengths), clock.device, dtype, queries=len(lengths))
    at = torch.tensor(lengths, dtype=torch.int32, device=given.q.device)
    cut = tables(given, length, len(lengths))
    last = cut.gather(1, ((at - 1) // PAGE).long()[:, None])[:, 0]
    filled = (at - 1) % PAGE + 1
    for page, count in zip(last.tolist(), filled.tolist(), strict=True):
        for cache in (given.sequence.keys, given.sequence.values):
            cache[page, count:] = float("nan")
    summarize_pages(given.summaries, given.sequence.keys, given.sequence.values, last.contiguous(), filled)
    step = Step(given.q, DecodeBatch(given.sequence.keys, given.sequence.values, cut, at), given.summaries, given.scale)
    config = configured(max(192, length // 4), length)
    yield from _right(f"decode, odd lengths, {shape}", step, config, decode_call(step, config)())


def _right(name: str, step: Step, config: DecodeConfig, out: torch.Tensor) -> Iterator[Check]:
    pages = _every_page(step) if config is _EVERYTHING else chosen_pages(step, config)
    return gate.decode(name, step, config, out, pages)


def _every_page(step: Step) -> torch.Tensor:
    there = -(-step.batch.lengths // PAGE)
    every = torch.arange(step.batch.tables.shape[1], device=there.device) < there[:, None, None]
    return every.expand(-1, step.batch.keys.shape[2], -1)


def _bytes(shape: Shape, config: DecodeConfig, load: Load, given: Inputs) -> float:
    """Read for one step: kept keys and values, and of all pages the means that are scored."""
    kept = min(config.budget, load.length) * 2 * shape.dim * given.q.element_size()
    means = given.summaries.sub_mean
    each = 1 if config.score == "spread" else means.shape[1]
    summary = load.length / PAGE * each * shape.dim * means.element_size()
    return float(load.sequences * shape.kv_heads * (kept + summary))
