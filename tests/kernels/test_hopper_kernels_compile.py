"""The Gluon kernels compile for Hopper without a GPU: no spills, no serialized products, softmax beside products."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
import triton
from sparse_kernels.gpu.hopper import latent_attention
from sparse_kernels.gpu.hopper.block_sparse_prefill import LAYOUT, OPTIONS, STAGES, kernel, passes
from sparse_kernels.gpu.hopper.items import AGAIN, CAREFUL, HOPEFUL
from support.kernels.assembled import assembled
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

Aligned = dict[tuple[int, ...], list[list[Any]]]

HOPPER = GPUTarget("cuda", 90, 32)
INDICES = ("counter", "redone", "work", "tables", "block_starts", "block_counts", "blocks", "offsets")
SHAPES = [
    *itertools.product([64, 128], ["bf16", "fp16"], [4, 7], [0, 1]),
    (128, "bf16", 1, 0), (128, "bf16", 2, 2), (128, "bf16", 4, 4), (64, "fp16", 3, 2),
]  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# As they are launched: dimensions, dtype, group, unit of means, pass.
VARIANTS = [(*shape, which) for shape in SHAPES for which in passes(DTYPES[shape[1]], shape[0], *shape[2:])]
# Of a step: two products of 128 keys, an exponential for each of a lane's 64 scores; with a running maximum also for
# its two rows' factors.
EXPONENTIALS = {HOPEFUL.value: 64, CAREFUL.value: 66, AGAIN.value: 66}


def built(dim: int, dtype: str, group: int, unit: int, which: int) -> tuple[str, list[str]]:
    """A variant of prefill, assembled."""
    names, stages = kernel.arg_names, STAGES[dim]
    constants = {"GROUP": group, "DIM": dim, "UNIT": unit, "KS": stages[0], "VS": stages[1], "PASS": which}
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(INDICES, "*i32") | {"scale": "fp32"}
    kinds |= {"out": f"*{dtype}", "lse": "*fp32", "weights": "*fp16"}
    for each in names:
        kinds.setdefault(each, f"tensordesc<{dtype}[64, {dim}],{LAYOUT!r}>" if each.endswith("_desc") else "i32")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, each in enumerate(names)
        if kinds[each].startswith("*") or each in ("s_ot", "heads")
    }
    return compiled(kernel, kinds, constants, aligned, OPTIONS)


def compiled(
    kernel: Any,
    kinds: dict[str, str],
    constants: dict[str, Any],
    aligned: Aligned,
    options: dict[str, int],
) -> tuple[str, list[str]]:
    """What ptxas tells of a kernel, and its instructions, each with its address in hexadecimal first."""
    given = {(kernel.arg_names.index(each),): value for each, value in constants.items()}
    made = triton.compile(GluonASTSource(kernel, kinds, given, aligned), target=HOPPER, options=dict(options))
    assert "f64" not in made.asm["ptx"]
    told, listing = assembled(made.asm["ptx"])
    return told, re.findall(r"^\s+/\*([0-9a-f]+\*/\s+.*?);", listing, re.M)


def loops(instructions: list[str]) -> list[list[str]]:
    """Bodies of loops, by their branches back."""
    places = {int(each.split("*")[0], 16): place for place, each in enumerate(instructions)}
    found = []
    for place, each in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", each)
        if target and places.get(int(target[1], 16), place) < place:
            found.append(instructions[places[int(target[1], 16)] : place + 1])
    return found


@pytest.mark.parametrize(("dim", "dtype", "group", "unit", "which"), VARIANTS)
def test_block_sparse_prefill(dim: int, dtype: str, group: int, unit: int, which: int) -> None:
    told, instructions = built(dim, dtype, group, unit, which)
    # A register that is put by from the kernel's beginning to its end, at most; none in a step, see below.
    assert max(map(int, re.findall(r"(\d+) bytes spill", told))) <= 4
    # ptxas says so when it waits for every product.
    assert not re.search(r"C75\d\d", told)
    assert int(re.findall(r"Used (\d+) registers", told)[0]) <= OPTIONS["maxnreg"]

    steps = [
        body
        for body in loops(instructions)
        if sum("MUFU.EX2" in each for each in body) == EXPONENTIALS[which] and len(body) < 760
    ]
    # Of the two consumers; an outer loop may be short enough to look alike.
    assert len(steps) >= 2
    for body in steps[:2]:
        assert sum("HGMMA" in each for each in body) == (dim + 128) // 16
        last = max(place for place, each in enumerate(body) if "MUFU.EX2" in each)
        waits = [place for place, each in enumerate(body) if "WARPGROUP.DEPBAR.LE gsb0, 0x0" in each]
        # The product with the values runs beside the exponentials: nothing waits for it before the last of these.
        assert len(waits) == 1
        assert last < waits[0]
        assert not any(re.search(r"\b(LDL|STL)\b", each) for each in body)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_latent_attention(dtype: str) -> None:
    kernel, constants = latent_attention.kernel, latent_attention.RANGES[DTYPES[dtype]]
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(("q", "q_rope", "k", "k_rope", "out"), f"*{dtype}")
    kinds |= {"tokens": "*i32", "lost": "*i32", "scale": "fp32"}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, each in enumerate(kernel.arg_names)
        if kinds.get(each, "").startswith("*") or each.startswith("s_") or each in ("count", "heads")
    }
    kinds = {each: kinds.get(each, "i32") for each in kernel.arg_names}
    told, instructions = compiled(kernel, kinds, constants, aligned, latent_attention.OPTIONS)
    assert set(re.findall(r"(\d+) bytes spill", told)) == {"0"}
    assert not re.search(r"C75\d\d", told)

    # Of a step: scores of 64 tokens over 576 dimensions, two products with 256 columns of 64 values.
    # Outer loops store what was attended.
    steps = [
        body
        for body in loops(instructions)
        if sum("HGMMA" in each for each in body) == 36 + 2 * 4 and not any("STG" in each for each in body)
    ]
    assert len(steps) == 2
    for body in steps:
        assert sum("MUFU.EX2" in each for each in body) == 32
        assert not any(re.search(r"\b(LDL|STL)\b", each) for each in body)
    # One group's exponentials stand amid the product with the other's weights.
    last = [max(place for place, each in enumerate(body) if "MUFU.EX2" in each) for body in steps]
    before = sorted(sum("HGMMA" in each for each in body[:place]) for body, place in zip(steps, last, strict=True))
    assert before[0] == 36
    assert before[1] > 36
    # Rows are copied 16 bytes a lane: two blocks, and the queries' latent part.
    assert sum("LDGSTS.E.BYPASS.128" in each for each in instructions) == 2 * 36 + 32
