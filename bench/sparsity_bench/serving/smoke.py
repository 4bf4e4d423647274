"""`python -m sparsity_bench.serving.smoke`: one worker starts, proves itself and answers, or its log is shown.

The model has made-up weights in the shape of Llama-3.1-8B, of so many layers; `--dry` takes a tiny one on the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.config import TIERS

from sparsity_bench.serving import repeats, soak
from sparsity_bench.serving.baseline import starts
from sparsity_bench.serving.plan import DRY, REAL, Plan
from sparsity_bench.serving.shapes import write_model
from sparsity_bench.serving.worker import Worker, prompt_of

_LOG_LINES = 80


async def smoke(
    plan: Plan, tier: str, folder: Path, options: Sequence[str], lengths: Sequence[int], requests: int
) -> list[str]:
    """Starts a worker, asks it for prompts of ``lengths`` alone and all at once, then for as many of all lengths.

    Returns:
        What is wrong with it.

    Raises:
        ConfigurationError: when it does not start.
    """
    wrong, started = [], time.perf_counter()
    model = write_model(folder / plan.name, plan.config)
    command = [*plan.options, *next(starts(plan, tier, folder)), *options]
    async with Worker(tier, model, folder / "worker.log", command) as worker:
        own = await worker.capabilities()
        took = time.perf_counter() - started
        proof = own.proof
        print(f"{tier}: serves after {took:.0f} s: backend {own.backend}, kernels {own.engine.kernels},", end=" ")
        print(
            f"graphs {own.engine.cuda_graphs}, {proof.sparse_kernel_calls} of {proof.kernel_calls} probe calls sparse,",
            end=" ",
        )
        print(f"{own.kv_capacity_tokens} KV tokens, summaries {own.engine.summary_bytes >> 20} MiB", flush=True)
        prompts = [prompt_of(length, own.vocabulary_size, 0) for length in lengths]
        for _ in range(2):
            for prompt in prompts:
                taken = await worker.ask(prompt, plan.new)
                report = taken.report
                print(
                    f"  {len(prompt):7d} tokens: first {taken.first:.3f} s, then {taken.per_token * 1e3:.2f} ms each,"
                    f" density {report.prefill_density:.3f} and {report.decode_density:.3f}",
                    flush=True,
                )
                if taken.tokens != plan.new:
                    wrong.append(f"{len(prompt)} tokens: {taken.tokens} of {plan.new} tokens came")
                if tier != "dense" and len(prompt) == max(lengths) and not report.sparse_kernel_calls:
                    wrong.append(f"{len(prompt)} tokens: no kernel call was sparse")
        together = await asyncio.gather(*(worker.ask(prompt, plan.new) for prompt in prompts * 2))
        wrong += [f"at once: {each.tokens} of {plan.new} tokens came" for each in together if each.tokens != plan.new]
        print(f"  all of them twice at once: {max(each.total for each in together):.3f} s", flush=True)
        wrong += await repeats.faults(worker, plan, own.vocabulary_size)
        wrong += await soak.faults(worker, plan, own.vocabulary_size, requests)
        wrong += [line for line in worker.told(100_000) if "Failed to apply hooks" in line]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Runs it; 1 when something is wrong, 2 when the worker does not start."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.serving.smoke", description=__doc__)
    parser.add_argument("--tier", default="aggressive", choices=TIERS)
    parser.add_argument("--layers", type=int, help="of the model; those of the shape without it")
    parser.add_argument("--lengths", default="", help="of prompts, by commas; those of the plan without it")
    parser.add_argument("--requests", type=int, default=100, help="of all lengths, a fifth of them left in the middle")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("options", nargs="*", help="more options of the worker, after --")
    options = parser.parse_args(arguments)
    plan = DRY if options.dry else REAL
    if options.layers:
        plan = replace(plan, config={**plan.config, "num_hidden_layers": options.layers})
    lengths = [int(length) for length in options.lengths.split(",") if length] or plan.prompts
    with tempfile.TemporaryDirectory() as folder:
        try:
            wrong = asyncio.run(smoke(plan, options.tier, Path(folder), options.options, lengths, options.requests))
        except Exception as error:
            log = Path(folder) / "worker.log"
            print(*log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else (), sep="\n")
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, ConfigurationError) else 1
    for fault in wrong:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
