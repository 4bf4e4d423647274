"""The Triton kernels compile for Hopper, which takes no GPU: tensor cores are used, and no register is spilled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import triton
from sparse_kernels.gpu import kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
FLOATS = ("scale", "softcap", "skip_below")
HALVES = ("q", "k", "v", "out")
SINGLES = ("lse", "means", "value_means")
INDICES = ("tables", "lengths", "starts", "tile_sequence", "tile_number", "indptr", "blocks", "pruned")
POINTERS = (*HALVES, *SINGLES, *INDICES)


def compiled(dim: int, warps: int, **flags: bool) -> str:
    """PTX of the kernel with tiles of 128 rows, pages of 64 keys and four query heads a KV head."""
    kernel = kernels()["block_sparse_prefill"]
    names = kernel.arg_names
    shape = {"TILE": 128, "BLOCK": 64, "DIM": dim, "GROUP": 4, "WORD": 32}
    constants = shape | {name: flags.get(name, False) for name in ("CORRECT", "WINDOW", "CAP", "SKIP")}
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(FLOATS, "fp32")
    kinds |= dict.fromkeys(INDICES, "*i32") | dict.fromkeys(SINGLES, "*fp32") | dict.fromkeys(HALVES, "*bf16")
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if name in POINTERS or name[:2] == "s_"}
    source = ASTSource(
        kernel,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        aligned,
    )
    return str(triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": 2}).asm["ptx"])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("dim", "warps"), [(64, 4), (128, 8)])
def test_block_sparse_prefill_compiles_without_spills(dim: int, warps: int, skip: bool, tmp_path: Path) -> None:
    ptx = compiled(dim, warps, CORRECT=True, SKIP=skip)
    assert ptx.count("wgmma.mma_async") >= 20
    file = tmp_path / "kernel.ptx"
    file.write_text(ptx)
    assembler = [triton.knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(file), "-o", str(tmp_path / "kernel.cubin")]
    told = subprocess.run(assembler, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"(\d+) bytes spill stores", told) == ["0"], told
    (registers,) = re.findall(r"Used (\d+) registers", told)
    assert int(registers) * warps * 32 <= 65536
