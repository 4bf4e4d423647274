"""What a run of the benchmark consists of, what matters most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from sparsity_serving.benchmark import Row

from sparsity_bench.kernels import gate
from sparsity_bench.kernels.gate import Gate
from sparsity_bench.kernels.inputs import Shape, inputs
from sparsity_bench.kernels.kernels import Prompt, full_index, prefill_call, selection_call
from sparsity_bench.kernels.ops import block_sparse_prefill, sparse_paged_decode, token_sparse_attention
from sparsity_bench.kernels.ops.block_sparse_prefill import BASE, CORRECTED, Prefills
from sparsity_bench.kernels.ops.sparse_paged_decode import Decodes, Load
from sparsity_bench.kernels.ops.token_sparse_attention import TINY, V32, TokenShape
from sparsity_bench.kernels.timing import Clock

PARTS = ("checks", "prefill", "decode", "shapes", "tokens")
_OTHER_SHAPES = (Shape(28, 4, 128), Shape(64, 8, 128), Shape(9, 3, 64), Shape(32, 8, 64))
Measure = Callable[[Clock, torch.dtype, Gate], Iterator[Row]]


class Part(NamedTuple):
    """One part.

    Attributes:
        kind: one of :data:`PARTS`.
        name: of what.
        run: measures it.
    """

    kind: str
    name: str
    run: Measure


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        device: `cuda` or `cpu`.
        dtype: of queries, keys and values.
        base: heads that goals are set for.
        others: more shapes, at one prompt length and one load.
        checked: a prompt length that is no multiple of anything.
        prompts: prompt lengths.
        prefills: what is measured of each.
        loads: of decode, by context; each with the sequences that the cache holds, and whose batches are timed.
        other_prompt: prompt length of other shapes.
        other_load: and their decode.
        halves: whether the base shape is measured in float16, too, at that prompt length and load.
        token_shape: of token-level attention.
        token_loads: contexts and queries of it.
    """

    device: str
    dtype: torch.dtype
    base: Shape
    others: tuple[Shape, ...]
    checked: int
    prompts: tuple[int, ...]
    prefills: Prefills
    loads: tuple[tuple[int, tuple[Load, ...]], ...]
    other_prompt: int
    other_load: Load
    halves: bool
    token_shape: TokenShape
    token_loads: tuple[tuple[int, int], ...]

    def parts(self) -> Iterator[Part]:
        """All of it, in order."""
        for shape in (self.base, *self.others):
            yield Part("checks", f"checks, {shape}", partial(_checks, shape, self.checked))
        for length in self.prompts:
            yield Part(
                "prefill", f"prefill, {self.base}, {length}", partial(_prefill, self.base, length, self.prefills)
            )
        for sequences, loads in self.loads:
            name = f"decode, {self.base}, {loads[0].length}"
            yield Part("decode", name, partial(_decode, self.base, sequences, loads))
        few = replace(self.prefills, forced=(CORRECTED,), units=(1,), tiers=("aggressive",), every=False)
        load = self.other_load
        for shape in self.others:
            yield Part("shapes", f"prefill, {shape}", partial(_prefill, shape, self.other_prompt, few))
            yield Part("shapes", f"decode, {shape}", partial(_decode, shape, load.sequences, (load,)))
        if self.halves:
            yield Part("shapes", "prefill, float16", _in_halves(partial(_prefill, self.base, self.other_prompt, few)))
            yield Part("shapes", "decode, float16", _in_halves(partial(_decode, self.base, load.sequences, (load,))))
        for context, queries in self.token_loads:
            yield Part(
                "tokens", f"tokens, {context}, {queries} queries", partial(_tokens, self.token_shape, context, queries)
            )


def planned(*, quick: bool) -> Plan:
    """What a GPU runs."""
    most, whole = (2048, 4096), (2048, 4096, 512)
    at_32k = (
        Load(1, 32768, most),
        Load(8, 32768, most),
        Load(16, 32768, whole, mixed=True, spread=True),
        Load(64, 32768, whole),
    )
    loads = (
        (16, (Load(1, 16384, most),)),
        (64, at_32k),
        (16, (Load(1, 131072, most), Load(16, 131072, most))),
    )
    plan = Plan(
        device="cuda", dtype=torch.bfloat16, base=BASE, others=_OTHER_SHAPES, checked=1000,
        prompts=(8192, 16384, 32768, 65536, 131072), prefills=Prefills(), loads=loads,
        other_prompt=32768, other_load=Load(16, 32768, (2048,)), halves=True, token_shape=V32,
        token_loads=((32768, 128), (32768, 4096), (131072, 128)),
    )  # fmt: skip
    if not quick:
        return plan
    few = Prefills(forced=(CORRECTED,), units=(1, 2), every=False)
    return replace(
        plan, others=(), halves=False, prompts=(8192, 32768), prefills=few,
        loads=((16, (Load(1, 32768), Load(16, 32768, whole))),), token_loads=plan.token_loads[:1],
    )  # fmt: skip


DRY = Plan(
    device="cpu", dtype=torch.float32, base=Shape(2, 1, 16), others=(Shape(3, 3, 16),), checked=300, prompts=(384,),
    prefills=Prefills(forced=(CORRECTED,)), loads=((2, (Load(2, 384, (192,), mixed=True, spread=True),)),),
    other_prompt=256, other_load=Load(1, 256, (192,)), halves=True, token_shape=TINY, token_loads=((128, 3),),
)  # fmt: skip


def _in_halves(measure: Measure) -> Measure:
    return lambda clock, _dtype, passing: measure(clock, torch.float16, passing)


def _prefill(
    shape: Shape, length: int, wanted: Prefills, clock: Clock, dtype: torch.dtype, passing: Gate
) -> Iterator[Row]:
    return block_sparse_prefill.rows(shape, length, clock, dtype, passing, wanted)


def _decode(
    shape: Shape, sequences: int, loads: tuple[Load, ...], clock: Clock, dtype: torch.dtype, passing: Gate
) -> Iterator[Row]:
    cached = Decodes(shape, loads[0].length, sequences, clock, dtype)
    for load in loads:
        yield from cached.rows(load, passing)


def _tokens(
    shape: TokenShape, context: int, queries: int, clock: Clock, dtype: torch.dtype, passing: Gate
) -> Iterator[Row]:
    return token_sparse_attention.rows(shape, context, queries, clock, dtype, passing)


def _checks(shape: Shape, length: int, clock: Clock, dtype: torch.dtype, passing: Gate) -> Iterator[Row]:
    """Odd lengths, which are not timed."""
    prompt = Prompt.of(inputs(shape, length, clock.device, dtype))
    what = f"{shape}, {length} tokens"
    every = prompt.before.expand(shape.kv_heads, -1, -1)
    passing.holds(
        gate.prefill(f"prefill, full index, {what}", prompt, prefill_call(prompt, full_index(prompt))(), every)
    )
    for unit in (1, 2, 4):
        config = block_sparse_prefill.configured("aggressive", length, unit)
        found = selection_call(prompt, config)()
        out = prefill_call(prompt, found.index, found.corrections)()
        passing.holds(
            gate.selection(f"selection, means of {unit}, {what}", prompt, config, found),
            gate.prefill(f"prefill, selected, means of {unit}, {what}", prompt, out, found.kept, unit),
        )
    passing.holds(*sparse_paged_decode.ragged_checks(shape, clock, dtype))
    yield from ()
