"""Many requests of all lengths, a fifth of them left in the middle: the others are answered, and nothing stays."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import Final

from sparsity_bench.serving.plan import Plan
from sparsity_bench.serving.worker import Taken, Worker, prompt_of

_LEFT: Final = 0.2
# Shares of requests, and of the longest prompt that theirs have at most.
_LENGTHS: Final = ((0.8, 0.04), (0.95, 0.25), (1.0, 1.0))
_NEW, _LEAVE_SECONDS, _IDLE_SECONDS = 64, 1.5, 30.0


async def faults(
    worker: Worker, plan: Plan, vocabulary: int, count: int, at_once: int = 24, seconds: float = math.inf
) -> list[str]:
    """What is wrong with ``count`` requests, of which so many run at once, and with what they leave behind.

    Each is of one of the worker's tiers. After so many seconds no more are sent; what was sent is told.
    """
    draw, gate, served = random.Random(0), asyncio.Semaphore(at_once), worker.tiers
    asked = [(_length(draw, plan.interrupted), draw.randint(1, _NEW), draw.random() < _LEFT) for _ in range(count)]
    leave = [draw.uniform(0, _LEAVE_SECONDS) for _ in asked]
    tiers = [draw.choice(served) for _ in asked]
    sent, end = [False] * count, time.monotonic() + seconds

    async def one(number: int) -> str:
        length, new, left = asked[number]
        tier = tiers[number]
        async with gate:
            if time.monotonic() > end:
                return ""
            sent[number] = True
            prompt = prompt_of(length, vocabulary, 2000 + number)
            if left:
                await worker.ask_and_leave(prompt, leave[number], f"left {number}", tier=tier)
                return ""
            return _fault(await worker.ask(prompt, new, tier=tier), length, new, tier)

    found = [fault for fault in await asyncio.gather(*map(one, range(count))) if fault]
    cancelled = sum(left for (_, _, left), was in zip(asked, sent, strict=True) if was)
    shares = Counter(tier for tier, was in zip(tiers, sent, strict=True) if was)
    told = ", ".join(f"{shares[tier]} {tier}" for tier in served)
    print(f"  {sum(sent)} of {count} mixed requests ({told}), {cancelled} of them cancelled", flush=True)
    deadline = time.monotonic() + _IDLE_SECONDS
    while any(held := await worker.held()):
        if time.monotonic() > deadline:
            return [*found, f"{held[0]} requests and {held[1]} tokens of the KV cache were left behind"]
        await asyncio.sleep(0.2)
    return found


def _length(draw: random.Random, longest: int) -> int:
    kind = draw.random()
    share = next(share for bound, share in _LENGTHS if kind < bound)
    return draw.randint(1, max(1, int(longest * share)))


def _fault(taken: Taken, length: int, new: int, tier: str) -> str:
    report, layers = taken.report, len(taken.report.layers)
    if taken.tokens != new:
        return f"{length} tokens: {taken.tokens} of {new} tokens came"
    densities = [report.prefill_density, report.decode_density]
    if not all(0 < density <= 1 for density in densities):
        return f"{length} tokens: densities are {densities}"
    if tier == "dense" and (min(densities) < 1 or report.sparse_kernel_calls):
        return f"{length} tokens: a dense request was pruned: densities are {densities}"
    if tier != "dense" and report.kernel_calls < layers * new:
        return f"{length} tokens: {report.kernel_calls} kernel calls in {layers} layers for {new} tokens"
    return ""
