"""`python -m sparsity_quality.speed`: checks the Triton kernels at real sizes, then times them beside dense attention.

Needs a GPU. `--dry` runs the same code on tiny shapes in Triton's interpreter (TRITON_INTERPRET=1): its times mean
nothing, and nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from sparsity.benchmark import Row, header, markdown, write

from sparsity_quality.speed import decode, gate, prefill
from sparsity_quality.speed.inputs import Shape

_SHAPES = (Shape(32, 8, 128), Shape(9, 3, 64), Shape(28, 4, 128))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        device: `cuda` or `cpu`.
        dtype: of queries, keys and values.
        checked: prompt lengths at which kernels are checked.
        shapes: heads.
        prompts: prompt lengths that are timed.
        steps: contexts and sequences of decode that are timed, for the first shape.
    """

    device: str
    dtype: torch.dtype
    checked: tuple[int, ...]
    shapes: tuple[Shape, ...]
    prompts: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]


DRY = Plan("cpu", torch.float32, (500,), (Shape(4, 2, 16),), (256,), ((256, 2),))
REAL = Plan(
    "cuda",
    torch.bfloat16,
    (1000, 8192),
    _SHAPES,
    (8192, 16384, 32768, 65536, 131072),
    tuple((length, sequences) for length in (16384, 32768, 65536, 131072) for sequences in (1, 4, 16, 64)),
)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 when a check fails, 2 when there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_quality.speed", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny shapes in Triton's interpreter; nothing is written")
    parser.add_argument("--checks-only", action="store_true", help="check the kernels, and time nothing")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder of kernels.json and kernels.md"
    )
    options = parser.parse_args(arguments)
    if options.dry and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry: set TRITON_INTERPRET=1")
    if not options.dry and not torch.cuda.is_available():
        print("error: torch finds no GPU; --dry tries the code without one", file=sys.stderr)
        return 2
    plan = DRY if options.dry else REAL
    wrong = 0
    for shape in plan.shapes:
        for length in plan.checked:
            for check in gate.checks(shape, length, plan.device, plan.dtype):
                wrong += not check.passed
                told = "ok    " if check.passed else "FAILED"
                print(f"{told} {check.name}: {check.error:.2e} (at most {check.bound:g})", flush=True)
    if wrong:
        print(f"error: {wrong} checks failed; nothing is timed", file=sys.stderr)
        return 1
    if options.checks_only:
        return 0
    found = []
    for row in _rows(plan):
        found.append(row)
        print(f"{row.name} | {row.shape} | {row.value:.4g} {row.unit}", flush=True)
    name = torch.cuda.get_device_name() if plan.device == "cuda" else "Triton's interpreter"
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    head = header("make bench-kernels", {"kernels": versions}) | {"device": name}
    if options.dry:
        print("a dry run: these times are an interpreter's, and are not written")
        return 0
    write(options.out, "kernels", head, found)
    print(markdown("kernels", {"header": head, "rows": [asdict(row) for row in found]}))
    return 0


def _rows(plan: Plan) -> Iterator[Row]:
    for shape in plan.shapes:
        for length in plan.prompts:
            yield from prefill.rows(shape, length, plan.device, plan.dtype)
    for length, sequences in plan.steps:
        yield from decode.rows(plan.shapes[0], length, sequences, plan.device, plan.dtype)
    if plan.device == "cuda":
        yield Row("peak memory of the run", "all of it", torch.cuda.max_memory_allocated() / 2**30, "GiB")


if __name__ == "__main__":
    sys.exit(main())
