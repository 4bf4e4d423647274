"""Servers of stock SGLang without an engine, by SGLang's own contract, for tests of the router."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as contract
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as stubs
from support.ports import free_port
from support.tiny import tiny_tokenizer

Behaviour = Callable[["FakeStock", Any, Any], AsyncIterator[Any]]
_TOKENIZER = tiny_tokenizer()
LIKELY = -0.25
DENSE_BACKEND = "fa3"


def tokens_of(text: str) -> list[int]:
    """The tokens of a text."""
    return list(_TOKENIZER.encode(text, add_special_tokens=False).ids)


def chunk(request: Any, tokens: Iterable[int], done: int, **more: Any) -> Any:
    """Tokens of a stream, of which ``done`` have come with them."""
    found = contract.GenerateStreamChunk(
        token_ids=tokens, prompt_tokens=len(request.tokenized.input_ids), completion_tokens=done, **more
    )
    if request.return_logprob:
        found.output_logprobs.token_ids.extend(found.token_ids)
        found.output_logprobs.token_logprobs.extend(LIKELY for _ in found.token_ids)
        for token in found.token_ids:
            likely = range(token, token + request.top_logprobs_num)
            found.output_logprobs.top_logprobs.add(token_ids=likely, values=[LIKELY - at for at in range(len(likely))])
    return contract.GenerateResponse(request_id=request.request_id, chunk=found)


def complete(request: Any, done: int, finish: str = "stop", **more: Any) -> Any:
    """The end of a stream of ``done`` tokens."""
    prompt = len(request.tokenized.input_ids)
    end = contract.GenerateComplete(finish_reason=finish, prompt_tokens=prompt, completion_tokens=done, **more)
    return contract.GenerateResponse(request_id=request.request_id, complete=end)


def says(text: str, finish: str = "stop", at_once: int = 1) -> Behaviour:
    """Answers with a text, so many tokens a message."""

    async def behave(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
        tokens = tokens_of(text)
        for start in range(0, len(tokens), at_once):
            yield chunk(request, tokens[start : start + at_once], min(start + at_once, len(tokens)), cached_tokens=2)
        yield complete(request, len(tokens), finish, cached_tokens=2)

    return behave


def fails(code: grpc.StatusCode, details: str, after: int = 0, trailers: tuple[Any, ...] = ()) -> Behaviour:
    """Fails after so many messages."""

    async def behave(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
        for done in range(after):
            yield chunk(request, tokens_of("x"), done + 1)
        await context.abort(code, details, trailers)

    return behave


async def hangs(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
    """One token, and no more."""
    yield chunk(request, tokens_of("x"), 1)
    await asyncio.sleep(3600)


@dataclass
class FakeStock(stubs.SglangSchedulerServicer):
    """One server on a port of its own."""

    model: Path
    behaviour: Behaviour = field(default_factory=lambda: says("abc"))
    kind: str = ""
    named: str = ""
    architectures: tuple[str, ...] = ()
    backend: str | None = DENSE_BACKEND
    arguments: dict[str, Any] = field(default_factory=dict)
    generates: bool = True
    tokenizer: bytes | None = None
    archive: bytes | None = None
    kv_tokens: int = 100_000
    requests: int = 0
    serving: bool = True
    paused: bool = False
    has_health: bool = True
    started: int = 1
    received: list[Any] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    cancelled: int = 0
    asked_for_tokenizer: int = 0
    asked_for_load: int = 0
    asked_for_token: int = 0
    port: int = 0
    _server: Any = None

    @property
    def address(self) -> str:
        """As options name it."""
        return f"sglang+grpc://127.0.0.1:{self.port}"

    async def start(self) -> FakeStock:
        self.port = self.port or free_port()
        # As SGLang's servers: who pings more often is hung up on.
        options = [("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1)]
        self._server = grpc.aio.server(options=options)
        stubs.add_SglangSchedulerServicer_to_server(self, self._server)
        if self.has_health:
            health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def restart(self) -> None:
        """Ends all connections, and begins anew at the same address."""
        await self.stop()
        self.started += 1
        await self.start()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.received.append(request)
        try:
            async for message in self.behaviour(self, request, context):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def Abort(self, request: Any, context: Any) -> Any:
        self.aborted.append(request.request_id)
        return contract.AbortResponse(success=True)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        # SGLang has its engine generate a token.
        self.asked_for_token += 1
        return contract.HealthCheckResponse(healthy=self.serving)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        # A vocabulary that is not the model's, as SGLang 0.5.23 tells.
        return contract.GetModelInfoResponse(
            model_path=str(self.model),
            served_model_name=self.named,
            is_generation=self.generates,
            vocab_size=128_256,
            model_type=self.kind,
            architectures=self.architectures,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        found = contract.GetServerInfoResponse(
            sglang_version="0.5.23", is_paused=self.paused, max_total_num_tokens=self.kv_tokens
        )
        found.start_time.seconds = self.started
        found.server_args.update({"attention_backend": self.backend, "max_running_requests": 8, **self.arguments})
        return found

    async def GetLoads(self, request: Any, context: Any) -> Any:
        self.asked_for_load += 1
        found = contract.GetLoadsResponse()
        found.loads.add(num_total_reqs=self.requests, num_used_tokens=10 * self.requests)
        return found

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked_for_tokenizer += 1
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("tokenizer.json", self.tokenizer or (self.model / "tokenizer.json").read_bytes())
        data = packed.getvalue() if self.archive is None else self.archive
        for start in range(0, len(data), 1000):
            yield common_pb2.GetTokenizerChunk(data=data[start : start + 1000])


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, server: FakeStock) -> None:
        self._server = server

    async def Check(self, request: Any, context: Any) -> Any:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._server.serving else states.NOT_SERVING)
