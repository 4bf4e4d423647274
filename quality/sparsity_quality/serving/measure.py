"""What a worker takes: alone, at once with others, and under requests that arrive when they like."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsity.benchmark import percentile
from sparsity.v1 import worker_pb2

from sparsity_quality.serving.plan import Plan
from sparsity_quality.serving.worker import Taken, Worker

_PARITY = 50


@dataclass(slots=True)
class Measured:
    """One tier's figures.

    Attributes:
        own: what the worker says of itself.
        first: seconds to the first token, median, by prompt length.
        density: of prefill, by prompt length.
        per_token: seconds a token of the fastest of the sequences, by their number.
        decode_density: of decode, by their number.
        throughput: tokens a second of prompts and answers under the mixed load.
        load_first: seconds to the first token under it, median and 99th percentile of the short requests.
        sparse_calls: kernel calls that pruned something, by prompt length.
        answers: to short prompts, which every tier attends densely.
    """

    own: worker_pb2.GetCapabilitiesResponse
    first: dict[int, float] = field(default_factory=dict)
    density: dict[int, float] = field(default_factory=dict)
    per_token: dict[int, float] = field(default_factory=dict)
    decode_density: dict[int, float] = field(default_factory=dict)
    throughput: float = 0.0
    load_first: tuple[float, float] = (0.0, 0.0)
    sparse_calls: dict[int, int] = field(default_factory=dict)
    answers: list[tuple[int, ...]] = field(default_factory=list)


def prompt_of(length: int, vocabulary: int, seed: int) -> list[int]:
    """Random tokens, the same for every tier."""
    draw = random.Random(f"{length} {seed}")
    return [draw.randrange(vocabulary) for _ in range(length)]


async def measure(worker: Worker, plan: Plan) -> Measured:
    """Everything of one tier."""
    own = await worker.capabilities()
    found, vocabulary = Measured(own), int(own.vocabulary_size)
    # Compilers and caches are warm after one of each.
    for length in plan.prompts:
        await worker.ask(prompt_of(length, vocabulary, -1), 2)
    for length in plan.prompts:
        taken = [await worker.ask(prompt_of(length, vocabulary, number), 1) for number in range(plan.repeats)]
        found.first[length] = statistics.median(each.first for each in taken)
        found.density[length] = taken[0].report.prefill_density
        found.sparse_calls[length] = int(taken[0].report.sparse_kernel_calls)
    for batch in plan.batches:
        together = await asyncio.gather(
            *(worker.ask(prompt_of(plan.context, vocabulary, number), plan.new) for number in range(batch))
        )
        found.per_token[batch] = _steady(together)
        found.decode_density[batch] = statistics.mean(each.report.decode_density for each in together)
    await _load(worker, plan, found, vocabulary)
    for number in range(_PARITY):
        found.answers.append((await worker.ask(prompt_of(plan.short, vocabulary, number), 1)).answer)
    return found


def _steady(together: Sequence[Taken]) -> float:
    """Seconds a token of the fastest: the others also wait for prompts that are read after theirs."""
    return min(each.per_token for each in together if each.tokens > 1)


async def _load(worker: Worker, plan: Plan, found: Measured, vocabulary: int) -> None:
    """Requests arrive at random (Poisson), whatever became of those before; every fifth is long."""
    draw, tasks, started = random.Random(0), [], time.perf_counter()
    for number in range(plan.load):
        length = plan.load_lengths[number % 5 == 4]
        prompt = prompt_of(length, vocabulary, 1000 + number)
        tasks.append((length, asyncio.create_task(worker.ask(prompt, plan.new))))
        await asyncio.sleep(draw.expovariate(plan.rate))
    taken = [(length, await task) for length, task in tasks]
    tokens = sum(length + each.tokens for length, each in taken)
    found.throughput = tokens / (time.perf_counter() - started)
    short = [each.first for length, each in taken if length == plan.load_lengths[0]]
    found.load_first = percentile(short, 0.5), percentile(short, 0.99)
