"""Requests that arrive when they like, whatever became of those before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from typing import NamedTuple

from sparsity_bench.serving.loads.group import Answering
from sparsity_bench.serving.worker import Taken


class Request(NamedTuple):
    """What arrives.

    Attributes:
        kind: it is counted among.
        prompt: token ids.
        tier: that it is asked at; None for the worker's own.
    """

    kind: str
    prompt: list[int]
    tier: str | None = None


class Load(NamedTuple):
    """What became of it.

    Attributes:
        taken: by each request, in its order; the wait before the worker took it counts.
        tokens: of prompts and answers.
        seconds: from the first arrival to the last token.
    """

    taken: list[tuple[Request, Taken]]
    tokens: int
    seconds: float

    def first(self, kind: str) -> list[float]:
        """Seconds to the first token, of one kind."""
        return [each.first for request, each in self.taken if request.kind == kind]


async def arrive(worker: Answering, requests: Iterable[Request], rate: float, new: int) -> Load:
    """Sends ``requests`` at random times (Poisson), ``rate`` a second.

    What is more than a worker accepts at once waits here, as it would in a router's queue, and the wait counts.
    """
    draw, tasks = random.Random(0), []
    accepted = asyncio.Semaphore((await worker.capabilities()).max_requests)

    async def arrived(request: Request) -> Taken:
        began = time.perf_counter()
        async with accepted:
            waited = time.perf_counter() - began
            return (await worker.ask(request.prompt, new, tier=request.tier)).after(waited)

    started = time.perf_counter()
    for request in requests:
        tasks.append((request, asyncio.create_task(arrived(request))))
        await asyncio.sleep(draw.expovariate(rate))
    taken = [(request, await task) for request, task in tasks]
    tokens = sum(len(request.prompt) + each.tokens for request, each in taken)
    return Load(taken, tokens, time.perf_counter() - started)
