"""Hedged requests: when a worker is slow with its first message, a second one is asked, and the first to speak serves.

After Dean and Barroso, "The Tail at Scale", CACM 2013. The loser's request is cancelled, which aborts it in its engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field

import grpc
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision

from sparsity_router.fleet.workers import Worker
from sparsity_router.relaying.dispatch import OvertakenError

Responses = AsyncGenerator[inference_pb2.GenerateResponse]


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One worker asked, and its stream.

    Attributes:
        worker: that was asked.
        stream: its messages.
        served: the decision as this worker serves it.
        policy: what policy gave the request when the worker was asked.
        began: when that was, by the monotonic clock.
    """

    worker: Worker
    stream: Responses
    served: Decision
    policy: Decision
    began: float = field(default_factory=time.monotonic)


class Hedge:
    """The stream of whichever worker speaks first.

    Args:
        attempt: made at once.
        second: makes another attempt, or gives None where nobody else may be asked.
        seconds: that the first is waited for.
        fell: told of an attempt that failed while the other still runs.

    Attributes:
        attempt: whose stream it is; where none gave a message, the one that failed last.
    """

    def __init__(
        self,
        attempt: Attempt,
        second: Callable[[], Attempt | None],
        seconds: float,
        fell: Callable[[Attempt, Exception], None],
    ) -> None:
        self.attempt = attempt
        self._second = second
        self._seconds = seconds
        self._fell = fell

    async def responses(self) -> Responses:
        """The winner's messages.

        Raises:
            grpc.aio.AioRpcError, OvertakenError: as the winner's stream, or the last one's when none gave a message.
        """
        running = {asyncio.ensure_future(anext(self.attempt.stream)): self.attempt}
        attempts = [self.attempt]
        try:
            await asyncio.wait(running, timeout=self._seconds)
            if not any(task.done() for task in running) and (second := self._second()) is not None:
                attempts.append(second)
                running[asyncio.ensure_future(anext(second.stream))] = second
            first = await self._first(running)
            await _end(running, [loser for loser in attempts if loser is not self.attempt])
            if first is None:
                return
            yield first
            async for response in self.attempt.stream:
                yield response
        finally:
            await _end(running, attempts)

    async def _first(
        self, running: dict[asyncio.Task[inference_pb2.GenerateResponse], Attempt]
    ) -> inference_pb2.GenerateResponse | None:
        """The first message of any attempt; None when the last one ended without any."""
        while True:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self.attempt = running.pop(task)
                problem = task.exception()
                if problem is None:
                    return task.result()
                if running and isinstance(problem, grpc.aio.AioRpcError | OvertakenError | StopAsyncIteration):
                    self._fell(self.attempt, problem)
                elif isinstance(problem, StopAsyncIteration):
                    return None
                else:
                    raise problem


async def _end(
    running: dict[asyncio.Task[inference_pb2.GenerateResponse], Attempt], attempts: Collection[Attempt]
) -> None:
    """Ends attempts; a cancel that comes meanwhile is not taken for theirs."""
    tasks = [task for task, attempt in running.items() if attempt in attempts]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        del running[task]
        # What it ended with says nothing any more; taken, so that nobody is told that it was not.
        if not task.cancelled():
            task.exception()
    for attempt in attempts:
        await attempt.stream.aclose()
