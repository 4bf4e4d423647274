"""A router over workers of every tier, beside which others are under way while somebody meets a fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from support.routers.chaos_router import router_over
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE
from support.routers.router import Router
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer

SPARSE = [(0, 3)]
TIERS = {"d": DENSE, "m": MODERATE, "a": AGGRESSIVE}
# Of a request that is answered at once, on a machine that may be busy.
SOON = 1.0
_BYSTANDER = 10**9


class Others:
    """One whose stream is under way from before to after, and one who asks all the while.

    Attributes:
        longest: that anybody waited for an answer, seconds.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._go = asyncio.Event()
        self._text = ""
        self.longest = 0.0
        self._answers = 0

    async def behave(self, worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        """A worker's, which keeps the stream open until the end."""
        if request.sampling.seed == _BYSTANDER:
            yield inference_pb2.GenerateResponse(text=">", token_ids=[1])
            await self._go.wait()
        async for response in answer(worker, request, context):
            yield response

    async def stream(self) -> None:
        """Asks, and reads to the end."""
        request = make_request("y" * 120, domain="rag", max_tier=MODERATE, tenant="bystander")
        request.sampling.seed = _BYSTANDER
        async for response in self._router.inference.Generate(request, timeout=60.0):
            self._text += response.text

    async def ask(self) -> None:
        """Asks again and again."""
        while not self._go.is_set():
            started = time.monotonic()
            await self._router.tier("code", tenant="bystander")
            self.longest = max(self.longest, time.monotonic() - started)
            self._answers += 1
            await asyncio.sleep(0.01)

    def end(self) -> None:
        """Lets the stream end."""
        self._go.set()

    def saw(self, at_most: float = SOON) -> str:
        """What they saw, checked: a whole stream, and answers within ``at_most`` seconds."""
        assert self._text == ">abc", self._text
        assert self._answers
        assert self.longest < at_most, f"somebody waited {self.longest:.1f} s"
        return f"a stream whole, {self._answers} answers within {self.longest * 1000:.0f} ms"


class Fleet:
    """The router, and its sound workers by tier."""

    def __init__(self, *sound: FakeWorker) -> None:
        self.sound = sound
        self.dense, self.moderate, self.aggressive = sound
        self.router: Router
        self.others = ""


@asynccontextmanager
async def fleet(
    folder: Path,
    *faulty: FakeWorker,
    places: tuple[str, ...] = (),
    tiers: str = "dma",
    at_most: float = SOON,
    **options: Any,
) -> AsyncIterator[Fleet]:
    """A router that gives `rag` to aggressive workers, ``faulty`` ones and those at ``places`` before sound ones.

    Where there is a policy folder, it must say so itself. Of the sound ones, those of ``tiers`` are there. After the
    block, ``others`` says what others saw, who waited for ``at_most`` seconds at most.
    """
    model = tiny_model(folder / "model")
    made = Fleet(*(FakeWorker(name, tier, model, places=64, outstanding=10**6) for name, tier in TIERS.items()))
    workers = [*faulty, *(worker for worker in made.sound if worker.name in tiers)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.stop)
        addresses = [worker.address for worker in workers]
        router = await stack.enter_async_context(router_over(folder, *addresses, *places, **options))
        if "policy_dir" not in options:
            await router.edit("rag", SPARSE)
        if options.get("detect", "off") == "off":
            await router.becomes("TIER_AGGRESSIVE")
        others = Others(router)
        for worker in workers:
            worker.received.clear()
            worker.behaviour = others.behave
        made.router = router
        working = [asyncio.create_task(others.stream()), asyncio.create_task(others.ask())]
        await asyncio.sleep(0.1)
        try:
            yield made
        finally:
            others.end()
            await asyncio.gather(*working)
        made.others = others.saw(at_most)
