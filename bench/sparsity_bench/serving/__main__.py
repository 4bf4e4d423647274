"""`python -m sparsity_bench.serving`: whole workers, one tier after the other on one device, beside the dense one.

Weights are made up, in the shape of Llama-3.1-8B: times hang on shapes. Needs a GPU; `--dry` runs the same code on a
tiny model on the CPU, where times mean nothing. Each tier's figures are written as they come, so that tiers can be
measured in several runs: `--only` names one, and `--merge` makes the result file of what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError, SparsityError
from sparsity_rpc.tiers import TIERS
from sparsity_serving.benchmark import header, markdown, write

from sparsity_bench.joined import join
from sparsity_bench.serving import verdict
from sparsity_bench.serving.baseline import OF_SHARED, SHARED, THIRDS, VARIANTS, narrowed, starts, third, variant_of
from sparsity_bench.serving.loads.group import Group
from sparsity_bench.serving.measure import load_of_tiers, measure, whole
from sparsity_bench.serving.measured import Measured, described, read_all
from sparsity_bench.serving.plan import DRY, LARGE, QUICK, REAL, Plan
from sparsity_bench.serving.shapes import write_model
from sparsity_bench.serving.together import Keep, beside, measured_together
from sparsity_bench.serving.worker import Worker

NAMES = (*TIERS, *VARIANTS)
_LOG_LINES = 40


def tune(plan: Plan, tier: str, model: Path, folder: Path) -> None:
    """Finds from where the tier is faster on this device; its worker will heed it.

    Raises:
        ConfigurationError: when it cannot.
    """
    chunk = plan.options[plan.options.index("--chunked-prefill-tokens") + 1]
    command = [
        sys.executable, "-m", "sparsity_worker.tune", "--model", str(model),
        "--profile", str(plan.profile(tier, folder)), "--chunked-prefill-tokens", chunk,
    ]  # fmt: skip
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise ConfigurationError(f"{tier}: could not be tuned")


def keeping(out: Path, head: dict[str, object]) -> Keep:
    """What writes the figures of a name to ``out``, beneath a header."""

    def keep(of: str) -> Callable[[Measured], None]:
        def kept(found: Measured) -> None:
            found.tier, found.head = of, head
            found.write(out)

        return kept

    return keep


async def measured(plan: Plan, name: str, folder: Path, keep: Keep) -> None:
    """A tier's or a variant's figures, kept as they come.

    Raises:
        ConfigurationError: when no worker starts.
    """
    model, problem = write_model(folder / plan.name, plan.config), f"{name}: there is nothing to start it with"
    if name == THIRDS:
        await thirds(plan, model, folder, keep(name))
        return
    variant = variant_of(name)
    for own in starts(plan, name, folder):
        log = folder / f"{name}.log"
        worker = Worker(variant.tier, model, log, [*plan.options, *own], variant.environment)
        try:
            async with worker:
                print(f"{name}: serves after {worker.started:.0f} s {' '.join(own)}", file=sys.stderr, flush=True)
                if name == SHARED:
                    await shared(worker, plan, keep)
                else:
                    await measure(worker, narrowed(plan, name), keep(name))
                return
        except ConfigurationError as error:
            problem = str(error)
            print(*worker.told(_LOG_LINES), f"{name}: {' '.join(own)} did not start", sep="\n", file=sys.stderr)
    raise ConfigurationError(problem)


async def thirds(plan: Plan, model: Path, folder: Path, keep: Callable[[Measured], None]) -> None:
    """The load of three tiers on a worker for each, which have a third of the KV cache and of the places each."""
    workers = {
        tier: Worker(
            tier, model, folder / f"third-{tier}.log", [*third(plan.options), *next(starts(plan, tier, folder))]
        )
        for tier in TIERS
    }
    async with Group(workers) as group:
        found = Measured(THIRDS, described(await group.capabilities()))
        await load_of_tiers(group, plan, found)
        found.compiled = [kernel for worker in workers.values() for kernel in worker.compiled()]
        keep(found)


async def shared(worker: Worker, plan: Plan, keep: Keep) -> None:
    """The tiers of one worker, one after the other, and all at once; ``keep`` says who gets the figures of a name."""
    for name, tier in OF_SHARED.items():
        worker.at = tier
        await measure(worker, narrowed(plan, name), keep(name), tier)
    keep(SHARED)(await whole(worker, plan))


def judge(out: Path, plan: Plan, *, dry: bool, beside: Path | None = None) -> int:
    """Prints the table of what is there, and writes it unless the run was dry; 1 when it may not be shown.

    Args:
        out: folder of the result file; the figures lie in one of its name.
        plan: of the run.
        dry: whether times mean nothing.
        beside: folder of the figures of one rank.
    """
    name = result_of(plan)
    there = read_all(out / name)
    found = {tier: there[tier] for tier in (*NAMES, *OF_SHARED) if tier in there}
    if wrong := verdict.faults(found):
        for fault in wrong:
            print(f"error: {fault}", file=sys.stderr)
        print("error: no figure is shown of a run that proves nothing", file=sys.stderr)
        return 1
    rows = list(verdict.rows(found, plan))
    if beside is not None:
        rows += verdict.beside_one_rank(found, read_all(beside), plan)
    head = found["dense"].head | {
        f"left out, {tier}": ", ".join(own.left_out) for tier, own in found.items() if own.left_out
    }
    if dry:
        print("a dry run: these times mean nothing, and are not written")
    else:
        write(out, name, head, rows)
    print(markdown(name, {"header": head, "rows": [asdict(row) for row in rows]}))
    missed = [row for row in rows if row.met is False]
    print(f"{len(missed)} of {sum(row.met is not None for row in rows)} goals missed", file=sys.stderr)
    return 0


def result_of(plan: Plan) -> str:
    """The result file's name, which its target of the Makefile has, too; ranks are told unless they are the model's."""
    model, ranks = ("serving-70b", LARGE.ranks) if plan.name == LARGE.name else ("serving", REAL.ranks)
    return model if plan.ranks == ranks else f"{model}-tp{plan.ranks}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; 1 when figures may not be shown, 2 when there is no GPU, or a worker does not start."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.serving", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU; no result file is written")
    parser.add_argument("--quick", action="store_true", help="fewer lengths and batches: three tiers in ten minutes")
    parser.add_argument("--large", action="store_true", help="the shape of Llama-3.3-70B, which takes several devices")
    parser.add_argument("--ranks", type=int, help="devices that share each layer's heads, where not the plan's")
    parser.add_argument("--beside", type=Path, help="with --merge: folder of the same tiers' figures by one rank")
    parser.add_argument("--only", action="append", choices=NAMES, help="a tier; repeat for more, all without it")
    parser.add_argument(
        "--together",
        nargs="+",
        choices=NAMES,
        help="these start at once and are measured in turn, in a smaller cache",
    )
    parser.add_argument("--tune", action="store_true", help="find first from where each sparse tier is faster here")
    parser.add_argument("--seconds", type=float, help="that a tier may take from when it serves")
    parser.add_argument("--merge", action="store_true", help="measure nothing: judge what --out holds")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="measure nothing: make one file of these runs' result files"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of all files")
    options = parser.parse_args(arguments)
    if options.together and len(options.together) > 1 and THIRDS in options.together:
        parser.error(f"--together: {THIRDS} are three workers already; name them alone")
    plan = DRY if options.dry else LARGE if options.large else QUICK if options.quick else REAL
    if options.ranks:
        plan = plan.by_ranks(options.ranks)
    if options.join:
        try:
            join(result_of(plan), options.join, options.out)
        except ValueError as error:
            parser.error(f"--join: {error}")
        return 0
    if options.merge:
        return judge(options.out, plan, dry=options.dry, beside=options.beside)
    if not options.dry and not torch.cuda.is_available():
        print("error: torch finds no GPU; --dry tries the code without one", file=sys.stderr)
        return 2
    device = "the CPU" if options.dry else torch.cuda.get_device_name()
    head = header(f"make bench-{result_of(plan)}", {"model": f"{plan.name}, made-up weights"})
    head |= {"device": device, "ranks": plan.ranks}
    plan = replace(plan, seconds=options.seconds or plan.seconds)
    tiers, keep = options.only or NAMES, keeping(options.out / result_of(plan), head)
    if not options.dry:
        # A first start reads gigabytes from the disk, which none of the tiers shall pay for.
        subprocess.run([sys.executable, "-c", "import sglang.srt.managers.scheduler"], check=False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.together:
                plan, tiers = beside(plan), options.together
            if len(options.together or ()) > 1:
                asyncio.run(measured_together(plan, tiers, Path(folder), keep))
                tiers = ()
            for tier in tiers:
                if options.tune and tier in plan.sparsity:
                    tune(plan, tier, write_model(Path(folder) / plan.name, plan.config), Path(folder))
                asyncio.run(measured(plan, tier, Path(folder), keep))
        except SparsityError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if "dense" not in read_all(options.out / result_of(plan)):
        names = ", ".join(options.together or tiers)
        print(f"{names}: written to {options.out}; to be judged beside the dense tier with --merge")
        return 0
    return judge(options.out, plan, dry=options.dry)


if __name__ == "__main__":
    sys.exit(main())
