"""`python -m sparsity_quality.serving`: whole workers, one tier after the other on one device, beside the dense one.

Weights are made up, in the shape of Llama-3.1-8B: times hang on shapes. Needs a GPU; `--dry` runs the same code on a
tiny model on the CPU, where times mean nothing, and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sparsity.benchmark import header, markdown, write
from sparsity.errors import SparsityError
from sparsity_worker.config import TIERS

from sparsity_quality.serving import verdict
from sparsity_quality.serving.measure import Measured, measure
from sparsity_quality.serving.plan import DRY, REAL, Plan
from sparsity_quality.serving.shapes import write_model
from sparsity_quality.serving.worker import Worker


async def measured(plan: Plan, folder: Path) -> dict[str, Measured]:
    """Every tier's figures; one worker at a time, since each takes the device whole.

    Raises:
        ConfigurationError: when a worker does not start.
    """
    found = {}
    model = write_model(folder / plan.name, plan.config)
    for tier in TIERS:
        own = [*plan.options, *plan.tier_options(tier, folder)]
        async with Worker(tier, model, folder / f"{tier}.log", own) as worker:
            print(f"{tier}: serving", file=sys.stderr, flush=True)
            found[tier] = await measure(worker, plan)
    return found


def judge(found: Mapping[str, Measured], plan: Plan, out: Path, device: str, *, dry: bool) -> int:
    """Prints the table, and writes it unless the run was dry; 1 when the figures may not be shown."""
    if wrong := verdict.faults(found, plan):
        for fault in wrong:
            print(f"error: {fault}", file=sys.stderr)
        print("error: no figure is shown of a run that proves nothing", file=sys.stderr)
        return 1
    rows = list(verdict.rows(found, plan))
    head = header("make bench-serving", {"model": f"{plan.name}, made-up weights"}) | {"device": device}
    if dry:
        print("a dry run: these times mean nothing, and are not written")
    else:
        write(out, "serving", head, rows)
    print(markdown("serving", {"header": head, "rows": [asdict(row) for row in rows]}))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs it; 2 when there is no GPU, or a worker does not start."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m sparsity_quality.serving", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU; nothing is written")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder of serving.json and serving.md"
    )
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("error: torch finds no GPU; --dry tries the code without one", file=sys.stderr)
        return 2
    device = "the CPU" if options.dry else torch.cuda.get_device_name()
    plan = DRY if options.dry else REAL
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = asyncio.run(measured(plan, Path(folder)))
        except SparsityError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return judge(found, plan, options.out, device, dry=options.dry)


if __name__ == "__main__":
    sys.exit(main())
