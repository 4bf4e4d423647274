"""`python -m sparsity_bench.kernels`: the kernels' times on one GPU, each checked in float64 first, beside dense ones.

Results are written after every part, so that a run that is cut short keeps what it has. `--dry` runs the same code on
tiny shapes in Triton's interpreter (TRITON_INTERPRET=1): its times mean nothing, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch
import triton
from sparsity_serving.benchmark import Row, header, write

from sparsity_bench.joined import join
from sparsity_bench.kernels import dense, plot
from sparsity_bench.kernels.gate import Gate
from sparsity_bench.kernels.kernels import chosen_kernel
from sparsity_bench.kernels.ops import token_sparse_attention
from sparsity_bench.kernels.parts import DRY, PARTS, Part, Plan, planned
from sparsity_bench.kernels.summary import summary
from sparsity_bench.kernels.timing import Clock


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 when a check fails, 2 when there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.kernels", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny shapes in Triton's interpreter; nothing is written")
    parser.add_argument("--checks-only", action="store_true", help="check the kernels, and time nothing")
    parser.add_argument("--quick", action="store_true", help="fewer lengths and shapes: about two minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run; all without it")
    parser.add_argument("--named", nargs="+", metavar="TEXT", help="of these, parts whose names hold one, as 131072")
    parser.add_argument("--seconds", type=float, default=480.0, help="no part begins later; the file says what is left")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder of kernels.json and kernels.md"
    )
    parser.add_argument("--join", type=Path, nargs="+", help="measure nothing: make one file of these runs' files")
    options = parser.parse_args(arguments)
    if options.join:
        try:
            print(summary(join("kernels", options.join, options.out)))
        except ValueError as error:
            parser.error(f"--join: {error}")
        _draw(options.out)
        return 0
    if options.dry and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry: set TRITON_INTERPRET=1")
    if not options.dry and not torch.cuda.is_available():
        print("error: torch finds no GPU; --dry tries the code without one", file=sys.stderr)
        return 2
    plan = DRY if options.dry else planned(quick=options.quick)
    parts = [part for part in plan.parts() if options.only is None or part.kind in options.only]
    if options.named:
        parts = [part for part in parts if any(text in part.name for text in options.named)]
    if not parts:
        parser.error(f"--only, --named: no part is so; there are {', '.join(part.name for part in plan.parts())}")
    run = _Run(plan, None if options.dry else options.out)
    if options.checks_only:
        parts = [part for part in parts if part.kind == "checks"]
    for part in parts:
        if time.monotonic() - run.started > options.seconds:
            run.left.append(part.name)
        else:
            run.measure(part)
    print(run.told())
    if not options.dry:
        _draw(options.out)
    if run.passing.failed:
        print(f"error: {run.passing.failed} checks failed; what they are of is not timed", file=sys.stderr)
    return 1 if run.passing.failed else 0


class _Run:
    """What was found so far; ``out`` is where it is written, None for nowhere."""

    def __init__(self, plan: Plan, out: Path | None) -> None:
        self.started = time.monotonic()
        self.passing, self.left = Gate(), list[str]()
        self._plan, self._out, self._rows = plan, out, list[Row]()
        self._clock = Clock(plan.device)
        self._absent = {} if plan.device == "cpu" else _absent()

    def measure(self, part: Part) -> None:
        """Runs a part, and writes what it found."""
        print(f"# {part.name}, at {time.monotonic() - self.started:.0f} s", flush=True)
        for row in self._measured(part):
            self._rows.append(row)
            print(f"{row.name} | {row.shape} | {row.value:.4g} {row.unit}", flush=True)
        if self._plan.device != "cpu":
            torch.cuda.empty_cache()
        if self._out is not None and self._rows:
            write(self._out, "kernels", self._header(), self._rows)

    def _measured(self, part: Part) -> Iterator[Row]:
        try:
            yield from part.run(self._clock, self._plan.dtype, self.passing)
        except (RuntimeError, ValueError) as error:
            # One shape without a kernel, or without the memory for it, is no reason to lose the others.
            self.passing.broken(part.name)
            self.left.append(f"{part.name}: {type(error).__name__}: {error}".splitlines()[0][:200])
            print(f"FAILED {self.left[-1]}", flush=True)

    def _header(self) -> dict[str, object]:
        name = torch.cuda.get_device_name() if self._plan.device == "cuda" else "Triton's interpreter"
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        head = header("make bench-kernels", {"kernels": versions}) | {"device": name}
        shapes = (self._plan.base, *self._plan.others)
        chosen = {str(shape): chosen_kernel(shape, self._plan.device, self._plan.dtype) for shape in shapes}
        head |= {"kernel of prefill": chosen, "checks": f"{self.passing.passed} passed, {self.passing.failed} failed"}
        head |= {"seconds": round(time.monotonic() - self.started)}
        if self._absent:
            head["not on this machine"] = self._absent
        if self.left:
            head["not run"] = self.left
        return head

    def told(self) -> str:
        """Tables of what was found."""
        if self._out is None:
            return "a dry run: these times are an interpreter's, and are not written\n" + summary(self._rows)
        return summary(self._rows)


def _draw(out: Path) -> None:
    """The charts, where there is something to draw with."""
    try:
        import_module("matplotlib")
    except ModuleNotFoundError:
        draws = f"python -m sparsity_bench.kernels.plot --results {out / 'kernels.json'}"
        print(f"no matplotlib here: {draws} draws the charts")
        return
    if not plot.drawable(json.loads((out / "kernels.json").read_text(encoding="utf-8"))):
        print("no charts: they are of prefill with selection included, which was not among the parts")
        return
    plot.main(["--results", str(out / "kernels.json")])


def _absent() -> dict[str, str]:
    """Baselines that do not load here, and why."""
    problem = dense.cute_problem()
    return ({dense.CUTE: problem} if problem else {}) | dense.absent(*token_sparse_attention.RIVALS)


if __name__ == "__main__":
    sys.exit(main())
