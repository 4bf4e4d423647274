"""Whether a prompt is answered alike each time: alone, among others, and after its reading was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from sparsity_bench.serving.plan import Plan
from sparsity_bench.serving.worker import Taken, Worker, prompt_of

_TIMES, _NEW = 3, 4
# Of answers in batches of other shapes: rounding differs, and made-up weights leave near ties. None on the CPU.
_ALIKE = {"cuda": 0.9, "cpu": 1.0}
_DENSITY = {"cuda": 0.01, "cpu": 1e-9}


class Repeats(NamedTuple):
    """How many answers are those of the prompt alone.

    Attributes:
        alone: of the same prompts alone again, tokens and densities.
        alone_of: of so many.
        among: first tokens among prompts of other lengths; on the CPU all tokens.
        among_of: of so many.
        aborted: of a prompt whose reading was broken off and begun again.
        aborted_of: of so many.
        apart: by which a density among others differs at most.
        among_whole: all tokens, among prompts of other lengths; None of runs that did not look.
        aborted_whole: all tokens, after an abort.
    """

    alone: int
    alone_of: int
    among: int
    among_of: int
    aborted: int
    aborted_of: int
    apart: float
    among_whole: int | None = None
    aborted_whole: int | None = None

    def faults(self, device: str) -> list[str]:
        """What is wrong with that on `cuda` or `cpu`; empty when nothing is."""
        wrong = []
        if self.alone < self.alone_of:
            wrong.append(f"of {self.alone_of} answers to prompts alone again only {self.alone} are alike")
        for answers, found, of in (
            ("among others", self.among, self.among_of),
            ("after an abort", self.aborted, self.aborted_of),
        ):
            if found < _ALIKE[device] * of:
                wrong.append(f"of {of} answers {answers} only {found} are those of the prompt alone")
        if self.apart > _DENSITY[device]:
            wrong.append(f"densities among others differ by {self.apart:.4f} from those alone")
        return wrong


async def repeated(worker: Worker, plan: Plan, vocabulary: int) -> Repeats:
    """Asks for each prompt alone and with all others, and breaks one off."""
    prompts = [prompt_of(length, vocabulary, 7) for length in plan.repeated]
    alone, same = [], 0
    for prompt in prompts:
        first, *again = [await worker.ask(prompt, _NEW) for _ in range(_TIMES)]
        alone.append(first)
        same += sum(_told(each) == _told(first) for each in again)
    mixed: list[tuple[Taken, Taken]] = []
    for _ in range(_TIMES):
        together = await asyncio.gather(*(worker.ask(prompt, _NEW) for prompt in prompts))
        mixed += zip(alone, together, strict=True)
    cold = prompt_of(plan.interrupted, vocabulary, 8)
    first, broken = await worker.ask(cold, _NEW), []
    for part in (0.3, 0.6):
        salt = f"broken off after {part}"
        await worker.ask_and_leave(cold, first.first * part, salt)
        # Of pages that were read before nothing is reported again: densities differ.
        broken.append((first, await worker.ask(cold, _NEW, salt)))
    apart = max(abs(a.report.prefill_density - b.report.prefill_density) for a, b in mixed)
    exact = plan.device == "cpu"
    return Repeats(
        same, len(alone) * (_TIMES - 1), _equal(mixed, exact), len(mixed), _equal(broken, exact), len(broken), apart,
        _equal(mixed, True), _equal(broken, True),
    )  # fmt: skip


def _equal(pairs: Iterable[tuple[Taken, Taken]], exact: bool) -> int:
    return sum(a.answer == b.answer if exact else a.answer[:1] == b.answer[:1] for a, b in pairs)


def _told(taken: Taken) -> tuple[tuple[int, ...], float, float]:
    return taken.answer, taken.report.prefill_density, taken.report.decode_density
