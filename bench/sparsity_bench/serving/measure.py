"""What a worker takes: alone, at once with others, and under requests that arrive when they like."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from sparsity_rpc.tiers import TIERS
from sparsity_worker.nvml import energy_joules

from sparsity_bench.serving.baseline import SHARED
from sparsity_bench.serving.loads import repeats
from sparsity_bench.serving.loads.arrivals import Request, arrive
from sparsity_bench.serving.loads.group import Answering
from sparsity_bench.serving.measured import Measured, described
from sparsity_bench.serving.plan import Decode, Plan
from sparsity_bench.serving.worker import Taken, Worker, prompt_of

# Short prompts, whose time is as much the host's, are repeated until these seconds have gone, or so often.
_STEADY, _MOST_REPEATS = 1.0, 25


async def measure(worker: Worker, plan: Plan, keep: Callable[[Measured], None], tier: str | None = None) -> Measured:
    """Everything of one tier, what proves the rest first; what the plan has no time for is left out, and named.

    Args:
        worker: that serves it.
        plan: of the run.
        keep: is handed the figures as they come.
        tier: of those that the worker serves; its only one without it.
    """
    own = described(await worker.capabilities(), tier)
    found, vocabulary = Measured(tier or worker.tier, own, worker.started), int(own["vocabulary"])
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
    if plan.tiers_load and time.monotonic() < deadline:
        await load_of_tiers(worker, plan, found)
    elif plan.tiers_load:
        found.left_out.append("load of three tiers")
    found.compiled = worker.compiled()
    keep(found)
    return found


async def again(worker: Worker, plan: Plan, found: Measured) -> None:
    """Takes the plan's prompts and batches once more, and adds these times to those that are there."""
    first, per_token = dict(found.first), dict(found.per_token)
    for length in plan.prompts:
        await _first(worker, plan, found, length)
        found.first[length] = first.get(length, []) + found.first[length]
    for decode in plan.decodes:
        await _per_token(worker, plan, found, decode)
        found.per_token[str(decode)] = per_token.get(str(decode), []) + found.per_token[str(decode)]
    found.compiled = worker.compiled()


async def _first(worker: Worker, plan: Plan, found: Measured, length: int) -> None:
    vocabulary = int(found.own["vocabulary"])
    # Compilers and caches are warm after one.
    await worker.ask(prompt_of(length, vocabulary, -1), 2)
    before = energy_joules()
    taken: list[Taken] = []
    while len(taken) < plan.repeats or (len(taken) < _MOST_REPEATS and sum(each.first for each in taken) < _STEADY):
        taken.append(await worker.ask(prompt_of(length, vocabulary, len(taken)), 1))
    _note_energy(found, str(length), before, length * len(taken))
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
    """Every fifth request is long."""
    short, long = plan.load_lengths
    requests = [
        Request(str(length), prompt_of(length, vocabulary, 1000 + number))
        for number, length in enumerate(long if number % 5 == 4 else short for number in range(plan.load))
    ]
    before = energy_joules()
    load = await arrive(worker, requests, plan.rate, plan.new)
    found.throughput, found.load_first = load.tokens / load.seconds, load.first(str(short))
    _note_energy(found, "load", before, load.tokens)


async def load_of_tiers(worker: Answering, plan: Plan, found: Measured) -> None:
    """A third of the requests each are dense, moderate and aggressive; a worker of one tier has them all at its own.

    Args:
        worker: of all tiers, or of one; or a group of workers.
        plan: of the run.
        found: gets the figures.
    """
    several, lengths, vocabulary = len(worker.tiers) > 1, plan.tiers_lengths, int(found.own["vocabulary"])
    requests = [
        # Every tier gets every length.
        Request(
            TIERS[number % len(TIERS)],
            prompt_of(lengths[number // len(TIERS) % len(lengths)], vocabulary, 2000 + number),
            TIERS[number % len(TIERS)] if several else None,
        )
        for number in range(plan.tiers_load)
    ]
    before = energy_joules()
    load = await arrive(worker, requests, plan.tiers_rate, plan.new)
    found.tiers_throughput, found.tiers_first = load.tokens / load.seconds, {tier: load.first(tier) for tier in TIERS}
    _note_energy(found, "load of three tiers", before, load.tokens)


async def whole(worker: Worker, plan: Plan) -> Measured:
    """A worker of all tiers under the load of all, when each of them has been measured."""
    found = Measured(SHARED, described(await worker.capabilities()), worker.started)
    await load_of_tiers(worker, plan, found)
    found.compiled = worker.compiled()
    return found


def _note_energy(found: Measured, name: str, before: float | None, tokens: int) -> None:
    after = energy_joules()
    if before is not None and after is not None and found.own["kernels"] != "torch":
        found.joules[name] = (after - before) / tokens * 1e3
