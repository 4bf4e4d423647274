"""Whether a prompt is answered alike each time: alone, among others, and after its reading was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from sparsity_bench.serving.plan import Plan
from sparsity_bench.serving.worker import Taken, Worker, prompt_of

_TIMES, _NEW = 3, 4
# Of answers in batches of other shapes: rounding differs, and made-up weights leave near ties. None on the CPU.
_ALIKE = {"cuda": 0.9, "cpu": 1.0}
_DENSITY = 0.01


async def faults(worker: Worker, plan: Plan, vocabulary: int) -> list[str]:
    """What differs from the answer to each prompt alone; empty when nothing does."""
    return [fault async for fault in _faults(worker, plan, vocabulary)]


async def _faults(worker: Worker, plan: Plan, vocabulary: int) -> AsyncIterator[str]:
    prompts = [prompt_of(length, vocabulary, 7) for length in plan.repeated]
    alone: list[Taken] = []
    for prompt in prompts:
        same = [await worker.ask(prompt, _NEW) for _ in range(_TIMES)]
        alone.append(same[0])
        if len({each.answer for each in same}) > 1 or len({_densities(each) for each in same}) > 1:
            yield f"{len(prompt)} tokens, {_TIMES} times alone, are not answered alike"
    mixed: list[tuple[Taken, Taken]] = []
    for _ in range(_TIMES):
        together = await asyncio.gather(*(worker.ask(prompt, _NEW) for prompt in prompts))
        mixed += zip(alone, together, strict=True)
    cold = prompt_of(plan.interrupted, vocabulary, 8)
    first = await worker.ask(cold, _NEW)
    for part in (0.3, 0.6):
        salt = f"broken off after {part}"
        await worker.ask_and_leave(cold, first.first * part, salt)
        again = await worker.ask(cold, _NEW, salt)
        # Of pages that were read before nothing is reported again: densities differ.
        mixed.append((first, again._replace(report=first.report)))
    for problem in _differences(mixed, _ALIKE[plan.device]):
        yield problem


def _differences(pairs: Iterable[tuple[Taken, Taken]], alike: float) -> Iterable[str]:
    pairs = list(pairs)
    equal = sum(a.answer[:1] == b.answer[:1] if alike < 1 else a.answer == b.answer for a, b in pairs)
    if equal < alike * len(pairs):
        yield f"of {len(pairs)} answers among others, or after an abort, only {equal} are those of the prompt alone"
    apart = max(abs(a.report.prefill_density - b.report.prefill_density) for a, b in pairs)
    if apart > (_DENSITY if alike < 1 else 1e-9):
        yield f"densities among others differ by {apart:.4f} from those alone"


def _densities(taken: Taken) -> tuple[float, float]:
    return taken.report.prefill_density, taken.report.decode_density
