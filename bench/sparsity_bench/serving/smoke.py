"""`python -m sparsity_bench.serving.smoke`: one worker starts, proves itself and answers, or its log is shown.

The model has made-up weights in the shape of Llama-3.1-8B, of so many layers; `--dry` takes a tiny one on the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import TIERS

from sparsity_bench.serving.baseline import starts
from sparsity_bench.serving.loads import repeats, soak
from sparsity_bench.serving.plan import DRY, REAL, Plan
from sparsity_bench.serving.shapes import write_model
from sparsity_bench.serving.worker import Taken, Worker, prompt_of

SHARED: Final = "shared"
_LOG_LINES = 80
# By its module: the command line as a whole needs more than a worker's machine may have.
_DOCTOR: Final = (
    sys.executable, "-c", "from sparsity_cli.fleet.worker import app; app()", "doctor", "--worker",
)  # fmt: skip


# What callers may ask for at most, and what a GPU's float32 flushes to 0.
_EXTREMES: Final[Mapping[str, Any]] = {
    "top_k": 2**31 - 1, "top_p": 1e-45, "temperature": 2.0, "seed": 2**64 - 1, "frequency_penalty": -2.0,
}  # fmt: skip


class Asked(NamedTuple):
    """What a smoke run asks for.

    Attributes:
        lengths: prompts, alone and all at once.
        requests: of all lengths at the end, a fifth of them cancelled.
        seconds: after which no more of these are sent.
        doctor: whether `sparsity worker doctor` looks at the worker, too.
    """

    lengths: Sequence[int]
    requests: int
    seconds: float
    doctor: bool = False


async def smoke(plan: Plan, tier: str, folder: Path, options: Sequence[str], asked: Asked) -> list[str]:
    """Starts a worker and asks it for what is asked.

    Returns:
        What is wrong with it.

    Raises:
        ConfigurationError: when it does not start.
    """
    wrong, started, lengths = [], time.perf_counter(), asked.lengths
    model = write_model(folder / plan.name, plan.config)
    tiers = TIERS if tier == SHARED else (tier,)
    parts = [part for each in tiers if each != "dense" or tier != SHARED for part in next(starts(plan, each, folder))]
    command = [*plan.options, *parts, *options]
    async with Worker(",".join(tiers), model, folder / "worker.log", command) as worker:
        own = await worker.capabilities()
        took = time.perf_counter() - started
        print(f"{tier}: serves after {took:.0f} s: backend {own.backend}, kernels {own.engine.kernels},", end=" ")
        for each in own.tiers:
            calls = f"{each.proof.sparse_kernel_calls} of {each.proof.kernel_calls} probe calls sparse"
            print(f"{each.profile} {calls}, density {each.proof.density:.3f},", end=" ")
        print(f"graphs {own.engine.cuda_graphs},", end=" ")
        print(f"{own.kv_capacity_tokens} KV tokens, summaries {own.engine.summary_bytes >> 20} MiB", flush=True)
        if asked.doctor and (await asyncio.to_thread(subprocess.run, [*_DOCTOR, worker.address])).returncode:
            wrong.append("the doctor found something, or did not run")
        prompts = [prompt_of(length, own.vocabulary_size, 0) for length in lengths]
        for at in (*tiers, *tiers):
            for prompt in prompts:
                taken = await worker.ask(prompt, plan.new, tier=at)
                report = taken.report
                print(
                    f"  {at:>10} {len(prompt):7d} tokens: first {taken.first:.3f} s, then"
                    f" {taken.per_token * 1e3:.2f} ms each,"
                    f" density {report.prefill_density:.3f} and {report.decode_density:.3f}",
                    flush=True,
                )
                if taken.tokens != plan.new:
                    wrong.append(f"{len(prompt)} tokens: {taken.tokens} of {plan.new} tokens came")
                if at != "dense" and len(prompt) == max(lengths) and not report.sparse_kernel_calls:
                    wrong.append(f"{len(prompt)} tokens: no kernel call was sparse")
                if at == "dense" and (report.sparse_kernel_calls or report.prefill_density < 1):
                    wrong.append(f"{len(prompt)} tokens: a dense request was pruned")
        # As many as it takes; who comes when it is full is refused, which a router knows and waits.
        places = asyncio.Semaphore(own.max_requests)

        async def placed(prompt: Sequence[int], at: str) -> Taken:
            async with places:
                return await worker.ask(prompt, plan.new, tier=at)

        together = await asyncio.gather(*(placed(prompt, at) for prompt in prompts * 2 for at in tiers))
        wrong += [f"at once: {each.tokens} of {plan.new} tokens came" for each in together if each.tokens != plan.new]
        print(f"  all of them twice at once: {max(each.total for each in together):.3f} s", flush=True)
        for worker.at in tiers:
            wrong += await _extremes(worker, plan, own.vocabulary_size)
            found = await repeats.repeated(worker, plan, own.vocabulary_size)
            print(f"  {worker.at}: {found}", flush=True)
            wrong += [f"{worker.at}: {fault}" for fault in found.faults(plan.device)]
        at_once = own.max_requests * 3 // 4
        wrong += await soak.faults(worker, plan, own.vocabulary_size, asked.requests, at_once, asked.seconds)
        wrong += worker.compiled()
        for line in worker.told(100_000):
            if "kernel" in line and "sparsity.worker" in line:
                print(f"  log: {line}")
        wrong += [line for line in worker.told(100_000) if "Failed to apply hooks" in line]
    return wrong


async def _extremes(worker: Worker, plan: Plan, vocabulary: int) -> list[str]:
    """What is wrong with a request for each extreme of what may be asked."""
    wrong = []
    for name, value in _EXTREMES.items():
        sampling = inference_pb2.SamplingParams(**{"temperature": 1.0, name: value})
        taken = await worker.ask(prompt_of(plan.short, vocabulary, 0), plan.new, sampling=sampling)
        if taken.tokens != plan.new or not all(token < vocabulary for token in taken.answer):
            wrong.append(f"{name}={value}: {taken.tokens} of {plan.new} tokens came")
    print(
        f"  {worker.at}: answered with {', '.join(f'{name}={value}' for name, value in _EXTREMES.items())}", flush=True
    )
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Runs it; 1 when something is wrong, 2 when the worker does not start."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.serving.smoke", description=__doc__)
    parser.add_argument(
        "--tier", default="aggressive", choices=(*TIERS, SHARED), help="all of them in one worker: shared"
    )
    parser.add_argument("--layers", type=int, help="of the model; those of the shape without it")
    parser.add_argument("--lengths", default="", help="of prompts, by commas; those of the plan without it")
    parser.add_argument("--requests", type=int, default=100, help="of all lengths, a fifth of them left in the middle")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no more of these are sent")
    parser.add_argument("--doctor", action="store_true", help="have `sparsity worker doctor` look at it, too")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("options", nargs="*", help="more options of the worker, after --")
    options = parser.parse_args(arguments)
    plan = DRY if options.dry else REAL
    if options.layers:
        plan = replace(plan, config={**plan.config, "num_hidden_layers": options.layers})
    lengths = [int(length) for length in options.lengths.split(",") if length] or plan.prompts
    with tempfile.TemporaryDirectory() as folder:
        try:
            asked = Asked(lengths, options.requests, options.seconds, options.doctor)
            wrong = asyncio.run(smoke(plan, options.tier, Path(folder), options.options, asked))
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
