"""What a worker takes: alone, at once with others, and under requests that arrive when they like."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable

from sparsity_worker.nvml import energy_joules

from sparsity_bench.serving import repeats
from sparsity_bench.serving.measured import Measured, described
from sparsity_bench.serving.plan import Decode, Plan
from sparsity_bench.serving.worker import Taken, Worker, prompt_of


async def measure(worker: Worker, plan: Plan, keep: Callable[[Measured], None]) -> Measured:
    """Everything of one tier, what proves the rest first; what the plan has no time for is left out, and named.

    Args:
        worker: that serves it.
        plan: of the run.
        keep: is handed the figures as they come.
    """
    own = described(await worker.capabilities())
    found, vocabulary = Measured(worker.tier, own, worker.started), int(own["vocabulary"])
    deadline = time.monotonic() + plan.seconds
    for number in range(plan.answers):
        found.answers.append(list((await worker.ask(prompt_of(plan.short, vocabulary, number), 1)).answer))
    if plan.repeated:
        found.repeats = await repeats.repeated(worker, plan, vocabulary)
        found.faults = found.repeats.faults(plan.device)
    keep(found)
    for length in plan.prompts:
        if time.monotonic() < deadline:
            await _first(worker, plan, found, length)
            keep(found)
        else:
            found.left_out.append(f"{length} tokens")
    for decode in plan.decodes:
        if time.monotonic() < deadline:
            await _per_token(worker, plan, found, decode)
            keep(found)
        else:
            found.left_out.append(f"decode of {decode}")
    if plan.load and time.monotonic() < deadline:
        await _load(worker, plan, found, vocabulary)
    elif plan.load:
        found.left_out.append("mixed load")
    found.compiled = worker.compiled()
    keep(found)
    return found


async def _first(worker: Worker, plan: Plan, found: Measured, length: int) -> None:
    vocabulary = int(found.own["vocabulary"])
    # Compilers and caches are warm after one.
    await worker.ask(prompt_of(length, vocabulary, -1), 2)
    before = energy_joules()
    taken = [await worker.ask(prompt_of(length, vocabulary, number), 1) for number in range(plan.repeats)]
    _note_energy(found, str(length), before, length * plan.repeats)
    found.first[length] = [each.first for each in taken]
    # Made-up weights leave nothing to the prompt: of all of them the densest.
    found.density[length] = max(each.report.prefill_density for each in taken)
    found.sparse_calls[length] = min(int(each.report.sparse_kernel_calls) for each in taken)


async def _per_token(worker: Worker, plan: Plan, found: Measured, decode: Decode) -> None:
    vocabulary = int(found.own["vocabulary"])
    prompts = [prompt_of(decode.context, vocabulary, number) for number in range(decode.batch)]

    async def together(new: int) -> list[Taken]:
        # By one salt each: after the first time the prompts are in the prefix cache, and all decode from the start on.
        return list(await asyncio.gather(*(worker.ask(prompt, new, f"{decode}") for prompt in prompts)))

    await together(2)
    times = []
    for _ in range(plan.repeats):
        taken = await together(plan.new)
        times.append(statistics.median(each.per_token for each in taken))
    found.per_token[str(decode)] = times
    found.decode_density[str(decode)] = statistics.mean(each.report.decode_density for each in taken)


async def _load(worker: Worker, plan: Plan, found: Measured, vocabulary: int) -> None:
    """Requests arrive at random (Poisson), whatever became of those before; every fifth is long.

    What is more than a worker accepts at once waits here, as it would in a router's queue, and the wait counts.
    """
    draw, tasks = random.Random(0), []
    accepted = asyncio.Semaphore((await worker.capabilities()).max_requests)

    async def arrived(prompt: list[int]) -> Taken:
        began = time.perf_counter()
        async with accepted:
            waited = time.perf_counter() - began
            taken = await worker.ask(prompt, plan.new)
        return taken._replace(first=taken.first + waited, total=taken.total + waited)

    before, started = energy_joules(), time.perf_counter()
    for number in range(plan.load):
        length = plan.load_lengths[number % 5 == 4]
        prompt = prompt_of(length, vocabulary, 1000 + number)
        tasks.append((length, asyncio.create_task(arrived(prompt))))
        await asyncio.sleep(draw.expovariate(plan.rate))
    taken = [(length, await task) for length, task in tasks]
    tokens = sum(length + each.tokens for length, each in taken)
    found.throughput = tokens / (time.perf_counter() - started)
    found.load_first = [each.first for length, each in taken if length == plan.load_lengths[0]]
    _note_energy(found, "load", before, tokens)


def _note_energy(found: Measured, name: str, before: float | None, tokens: int) -> None:
    after = energy_joules()
    if before is not None and after is not None and found.own["kernels"] != "torch":
        found.joules[name] = (after - before) / tokens * 1e3
