"""Prefill beside dense attention: attention alone, mean correction, selection, and all of it as a worker runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from sparse_kernels import PrefillConfig, causal_pairs
from sparse_kernels.layout.block_index import BlockIndex
from sparsity_serving.benchmark import Row, against, judged

from sparsity_bench.kernels import dense, gate, goals, recorded
from sparsity_bench.kernels.gate import Gate
from sparsity_bench.kernels.inputs import PAGE, TILE, Shape, inputs
from sparsity_bench.kernels.kernels import (
    Call,
    Prompt,
    corrections,
    full_index,
    prefill_call,
    selected_prefill_call,
    selection_call,
)
from sparsity_bench.kernels.timing import Clock, Times

# Asked of top-k by prompt length; what is reached with the tiles' own keys stands in the rows.
DENSITIES: Mapping[str, Mapping[int, float]] = {
    "aggressive": {8192: 0.54, 16384: 0.34, 32768: 0.19, 65536: 0.09, 131072: 0.046},
    "moderate": {8192: 0.8, 16384: 0.5, 32768: 0.28, 65536: 0.13, 131072: 0.07},
}
# The random share at which mean correction is timed.
CORRECTED = 0.1
# What is timed by every unit, and stands beside what is recorded of others.
_TIER, _UNITS = "aggressive", (1, 2, 4)
BASE = Shape(32, 8, 128)


@dataclass(frozen=True, slots=True)
class Prefills:
    """What is measured of one prompt.

    Attributes:
        forced: shares of a random index.
        units: blocks behind a mean.
        tiers: with selection.
        every: dense baselines beside the fastest, and each tier by all units.
    """

    forced: tuple[float, ...] = (0.05, 0.1, 0.2)
    units: tuple[int, ...] = _UNITS
    tiers: tuple[str, ...] = ("aggressive", "moderate")
    every: bool = True


class _Bench:
    """One prompt, its clock and its gate."""

    def __init__(self, shape: Shape, length: int, clock: Clock, dtype: torch.dtype, passing: Gate) -> None:
        self.shape, self.length, self.clock, self.gate = shape, length, clock, passing
        self.prompt = Prompt.of(inputs(shape, length, clock.device, dtype))
        self.what = f"{shape.of(dtype)}, {length} tokens"
        self.flops = 4.0 * shape.heads * shape.dim * causal_pairs(length, 0)
        # Goals and others' figures are of one shape.
        self.judged = shape == BASE and dtype == torch.bfloat16
        self.dense: dict[str, Times] = {}

    def fastest(self, mode: str) -> tuple[str, float]:
        """The fastest dense attention of this run, or what is recorded where that is faster."""
        found = {name: times.modes[mode] for name, times in self.dense.items() if mode in times.modes}
        if self.judged and self.length in recorded.FLASH_ATTENTION_3:
            found[f"FlashAttention-3, {recorded.ON}"] = recorded.FLASH_ATTENTION_3[self.length]
        return min(found.items(), key=lambda each: each[1])

    def goal(self, row: Row, bound: Mapping[int, float], at_least: float | None = None, unit: str = "times") -> Row:
        """The row judged by the goal of this length, where there is one: at least, or (without a figure) at most."""
        wanted = bound.get(self.length)
        if wanted is None or not self.judged:
            return row
        assert row.value is not None
        if at_least is None:
            return judged(row, f"<= {wanted:g} {row.unit}", met=row.value <= wanted)
        return judged(row, f">= {wanted:g} {unit}", met=at_least >= wanted)

    def beside_cute(self, row: Row, mode: str) -> Iterator[Row]:
        """The row once more, beside SGLang's CuTe FlashAttention, where that was timed, also as the fastest."""
        found = self.dense[dense.CUTE].modes.get(mode) if dense.CUTE in self.dense else None
        if found is not None:
            yield against(Row(f"{row.name}, beside {dense.CUTE}", row.shape, row.value, row.unit), dense.CUTE, found)

    def random(self, share: float) -> torch.Tensor:
        """A random index, bool ``[Hkv, tiles, blocks]``."""
        before, device = self.prompt.before, self.prompt.given.q.device
        generator = torch.Generator(device=device).manual_seed(1)
        drawn = torch.rand(self.shape.kv_heads, *before.shape, generator=generator, device=device) < share
        return drawn & before

    def density(self, kept: torch.Tensor) -> float:
        """Attended over causal pairs, the tiles' own included."""
        inside, pairs = self.length * (TILE + 1) / 2, causal_pairs(self.length, 0)
        return float(kept.sum()) / kept.shape[0] * PAGE * TILE / pairs + inside / pairs

    def right(self, name: str, call: Call, kept: torch.Tensor, unit: int = 0) -> bool:
        """Whether a call gives what the definition does."""
        return self.gate.holds(gate.prefill(f"{name}, {self.what}", self.prompt, call(), kept, unit))


def rows(shape: Shape, length: int, clock: Clock, dtype: torch.dtype, passing: Gate, wanted: Prefills) -> Iterator[Row]:
    """What one prompt takes, by every method."""
    bench = _Bench(shape, length, clock, dtype, passing)
    yield from _dense(bench, wanted)
    yield from _full(bench)
    for share in wanted.forced:
        yield from _forced(bench, share, wanted.units if share == CORRECTED else ())
    yield from _selection(bench)
    for tier in wanted.tiers:
        for unit in wanted.units if wanted.every and tier == _TIER else wanted.units[:1]:
            yield from _selected(bench, tier, unit)


def _dense(bench: _Bench, wanted: Prefills) -> Iterator[Row]:
    every = bench.prompt.before.expand(bench.shape.kv_heads, -1, -1)
    for name, run, view in dense.prefills(bench.prompt.given):
        skipped = name == dense.FLASH and not wanted.every
        if skipped or not bench.right(f"dense prefill, {name}", lambda run=run, view=view: view(run()), every):  # type: ignore[misc]
            continue
        bench.dense[name] = bench.clock.times(run)
        for mode, taken in bench.dense[name].modes.items():
            yield Row(f"dense prefill, {name}, {mode}", bench.what, taken, "ms")
            yield Row(
                f"dense prefill, {name}, {mode}, rate", bench.what, bench.flops / (taken * 1e-3) / 1e12, "TFLOP/s"
            )
    if bench.judged and bench.length in recorded.FLASH_ATTENTION_3:
        taken = recorded.FLASH_ATTENTION_3[bench.length]
        yield Row(f"dense prefill, FlashAttention-3, {recorded.ON}", bench.what, taken, "ms")


def _full(bench: _Bench) -> Iterator[Row]:
    prompt = bench.prompt
    call = prefill_call(prompt, full_index(prompt))
    if not bench.right("prefill, full index", call, prompt.before.expand(bench.shape.kv_heads, -1, -1)):
        return
    times = bench.clock.times(call)
    for mode, taken in times.modes.items():
        beside = bench.dense[dense.CUDNN].modes[mode] if dense.CUDNN in bench.dense else None
        row = Row(f"prefill, full index, {mode}", bench.what, taken, "ms")
        if beside is not None:
            row = against(row, dense.CUDNN, beside)
            row = bench.goal(row, goals.FULL, beside / taken) if mode == times.last else row
        yield row
        yield from bench.beside_cute(row, mode)
        yield Row(f"prefill, full index, {mode}, rate", bench.what, bench.flops / (taken * 1e-3) / 1e12, "TFLOP/s")


def _forced(bench: _Bench, share: float, units: tuple[int, ...]) -> Iterator[Row]:
    """Attention alone, over a random share of the blocks; then with means for the others."""
    kept = bench.random(share)
    index, density = BlockIndex.of(kept), bench.density(kept)
    call = prefill_call(bench.prompt, index)
    name, what = f"prefill, random {share:.0%}", f"{bench.what}, density {density:.3f}"
    if not bench.right(name, call, kept):
        return
    plain = bench.clock.times(call)
    for mode, taken in plain.modes.items():
        tflops = bench.flops * density / (taken * 1e-3) / 1e12
        yield Row(f"{name}, {mode}", what, taken, "ms")
        row = Row(f"{name}, {mode}, rate", what, tflops, "TFLOP/s of kept pairs")
        other = recorded.FLASH_PREFILL_V2_FORCED.get(bench.length)
        if share == recorded.FORCED_DENSITY and other is not None and bench.judged:
            row = replace(
                row, baseline=f"FlashPrefill V2, {recorded.ON}", baseline_value=other, ratio=tflops / other
            )  # fmt: skip
            row = bench.goal(row, goals.FORCED, tflops, "TFLOP/s") if mode == plain.last else row
        yield row
    for unit in units:
        corrected = prefill_call(bench.prompt, index, corrections(bench.prompt, kept, unit))
        named = f"{name}, means of {unit}"
        if not bench.right(named, corrected, kept, unit):
            continue
        for mode, taken in bench.clock.times(corrected, sustained=plain.sustained is not None).modes.items():
            yield Row(f"{named}, {mode}", what, taken, "ms")
            row = Row(f"{named}, {mode}, extra time", what, taken / plain.modes[mode] - 1, "of the time without")
            yield bench.goal(row, goals.CORRECTION) if mode == "cool" else row


def configured(tier: str, length: int, unit: int) -> PrefillConfig:
    """Settings by which a tier attends its density of a prompt."""
    # Of the blocks before a tile there are half as many as of all, on the average.
    share = DENSITIES[tier].get(length, 0.25) / 2
    return PrefillConfig(
        score="sub_means", rule="top_k", threshold=share, query_tile=TILE, query_stride=8, sink=64, window=0,
        dense_last_tiles=0, mean_blocks=unit,
    )  # fmt: skip


def _selection(bench: _Bench) -> Iterator[Row]:
    exact = configured(_TIER, bench.length, 1)
    for rule, threshold in (("top_k", exact.threshold), ("max_threshold", 0.05)):
        config = replace(exact, rule=rule, threshold=threshold)
        call = selection_call(bench.prompt, config)
        if not bench.gate.holds(gate.selection(f"selection, {rule}, {bench.what}", bench.prompt, config, call())):
            continue
        row = Row(f"selection, {rule}, cool", bench.what, bench.clock.times(call, sustained=False).cool, "ms")
        other = recorded.FLASH_PREFILL_V2_SELECTION.get(bench.length)
        if other is not None and bench.judged:
            row = against(row, f"FlashPrefill V2, {recorded.ON}", other)
        yield bench.goal(row, goals.SELECTION_MS)


def _selected(bench: _Bench, tier: str, unit: int) -> Iterator[Row]:
    """Selection and corrected attention, beside the fastest dense attention."""
    config = configured(tier, bench.length, unit)
    select, call = selection_call(bench.prompt, config), selected_prefill_call(bench.prompt, config)
    found = select()
    kept = found.kept
    what = f"{bench.what}, density {bench.density(kept):.3f}"
    named = f"prefill, {tier}, means of {unit}"
    checks = (
        gate.selection(f"selection, {tier}, {bench.what}", bench.prompt, config, found),
        gate.prefill(f"{named}, {bench.what}", bench.prompt, call(), kept, unit),
    )
    if not bench.gate.holds(*checks):
        return
    times = bench.clock.times(call)
    for mode, taken in times.modes.items():
        name, fastest = bench.fastest(mode)
        row = against(Row(f"{named}, selection included, {mode}", what, taken, "ms"), name, fastest)
        yield bench.goal(row, goals.PREFILL[tier], fastest / taken) if mode == times.last else row
        yield from bench.beside_cute(row, mode)
    if unit == 1:
        selecting = bench.clock.times(select, sustained=False).cool
        yield Row(f"prefill, {tier}, share of selection", what, selecting / times.cool, "share")
    other = recorded.flash_prefill_v2(bench.length, bench.density(kept))
    if tier == _TIER and bench.judged and other is not None:
        whose = f"FlashPrefill V2, {recorded.ON}, density {other[0]:g}, without correction"
        yield against(Row(f"{named}, beside FlashPrefill V2", what, times.cool, "ms"), whose, other[1])
