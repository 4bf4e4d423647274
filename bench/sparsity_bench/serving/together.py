"""Workers that stand on one device at once and are measured in turn.

Their starts overlap, and what is compared lies minutes apart on one machine. The KV cache is smaller, so that all fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from sparsity_bench.serving.baseline import OF_SHARED, SHARED, UNACCOUNTED, VARIANTS, narrowed, starts, variant_of
from sparsity_bench.serving.measure import again, measure, whole
from sparsity_bench.serving.measured import Measured
from sparsity_bench.serving.plan import Plan
from sparsity_bench.serving.shapes import write_model
from sparsity_bench.serving.worker import Worker

# Of two workers with the weights of the real plan on one H200; 8 prompts of 32,768 tokens and what they generate.
_KV_TOKENS: Final = "280000"
# Longer prompts are the device's time, which does not drift by a percent.
_LONGEST_AGAIN: Final = 8192
# Turns of workers with and without accounts: what drifts over minutes comes to both.
_TURNS: Final = 10
Keep = Callable[[str], Callable[[Measured], None]]


def beside(plan: Plan) -> Plan:
    """The plan with a KV cache of which two fit on the device, and what fits in it."""
    options = list(plan.options)
    if plan.device != "cpu":
        options[options.index("--max-total-tokens") + 1] = _KV_TOKENS
    return replace(plan, options=tuple(options), prompts=plan.prompts[:4], decodes=plan.decodes[:2], load=0)


async def measured_together(plan: Plan, names: Sequence[str], folder: Path, keep: Keep) -> None:
    """The figures of several tiers or variants, whose workers run at once; what is close is measured once more.

    Accounts are measured in ten turns more, so that each median is of over 20 batches or prompts.

    Args:
        plan: of the run, as :func:`beside` gives it.
        names: of tiers and variants, the baseline first.
        folder: of models and logs.
        keep: says who gets the figures of a name.

    Raises:
        ConfigurationError: when one does not start.
    """
    model = write_model(folder / plan.name, plan.config)
    workers = {name: _worker(plan, name, model, folder) for name in names}
    async with AsyncExitStack() as running:
        await asyncio.gather(*(running.enter_async_context(worker) for worker in workers.values()))
        lines = [(each, worker, at) for name, worker in workers.items() for each, at in _lines(name)]
        found: dict[str, tuple[Measured, Worker, str | None]] = {}
        for name, worker, at in lines:
            worker.at, worker.started = at, 0.0
            found[name] = await measure(worker, _narrowed(plan, name, names), keep(name), at), worker, at
        if SHARED in workers:
            keep(SHARED)(await whole(workers[SHARED], plan))
        for turn in range(_TURNS if UNACCOUNTED in names else 1):
            # Who is first in one turn is last in the next.
            order = list(found.items()) if turn % 2 else list(reversed(found.items()))
            for name, (own, worker, at) in order:
                worker.at = at
                await again(worker, _close(_narrowed(plan, name, names), names), own)
                keep(name)(own)


def _worker(plan: Plan, name: str, model: Path, folder: Path) -> Worker:
    variant = variant_of(name)
    return Worker(
        variant.tier, model, folder / f"{name}.log", [*plan.options, *next(starts(plan, name, folder))],
        variant.environment,
    )  # fmt: skip


def _lines(name: str) -> Iterable[tuple[str, str | None]]:
    """What is measured of a worker: itself, or each tier of a shared one."""
    return OF_SHARED.items() if name == SHARED else [(name, None)]


def _narrowed(plan: Plan, name: str, names: Sequence[str]) -> Plan:
    """Of accounts both sides have the same; the dense load of three tiers is there for the shared worker's."""
    if UNACCOUNTED in names and name == VARIANTS[UNACCOUNTED].tier:
        return replace(narrowed(plan, UNACCOUNTED), answers=plan.answers)
    return narrowed(plan, name)


def _close(plan: Plan, names: Sequence[str]) -> Plan:
    """What is measured again: what differs by percents and hangs on the host."""
    if UNACCOUNTED in names:
        return plan
    return replace(plan, prompts=tuple(length for length in plan.prompts if length <= _LONGEST_AGAIN), decodes=())
