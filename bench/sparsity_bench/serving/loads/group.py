"""Several workers of one tier each, asked as if they were one of all tiers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from sparsity.v1 import worker_pb2

from sparsity_bench.serving.worker import Taken, Worker


class Answering(Protocol):
    """A worker, or a group."""

    @property
    def tiers(self) -> Sequence[str]:
        """That it serves."""

    async def capabilities(self) -> worker_pb2.GetCapabilitiesResponse:
        """What it says of itself."""

    async def ask(self, prompt: Sequence[int], new: int, *, tier: str | None = None) -> Taken:
        """One request to its full length."""


class Group:
    """Each request goes to the worker of its tier, and waits where that one has no place.

    Args:
        workers: by tier, in one process each; entering the group starts all of them at once.
    """

    def __init__(self, workers: dict[str, Worker]) -> None:
        self._workers = workers
        self._places: dict[str, asyncio.Semaphore] = {}
        self._running = AsyncExitStack()

    @property
    def tiers(self) -> Sequence[str]:
        """Of its workers."""
        return tuple(self._workers)

    async def __aenter__(self) -> Group:
        """Waits until all serve.

        Raises:
            ConfigurationError: when one does not start.
        """
        async with AsyncExitStack() as starting:
            for worker in self._workers.values():
                starting.push_async_exit(worker)
            await asyncio.gather(*(worker.__aenter__() for worker in self._workers.values()))
            for tier, worker in self._workers.items():
                self._places[tier] = asyncio.Semaphore((await worker.capabilities()).max_requests)
            self._running = starting.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        """Ends all of them."""
        await self._running.aclose()

    async def capabilities(self) -> worker_pb2.GetCapabilitiesResponse:
        """Of the first, with the places of all."""
        each = [await worker.capabilities() for worker in self._workers.values()]
        each[0].max_requests = sum(own.max_requests for own in each)
        return each[0]

    async def ask(self, prompt: Sequence[int], new: int, *, tier: str | None = None) -> Taken:
        """One request to its full length; the wait for a place counts."""
        began, tier = time.perf_counter(), tier or self.tiers[0]
        async with self._places[tier]:
            waited = time.perf_counter() - began
            return (await self._workers[tier].ask(prompt, new)).after(waited)
