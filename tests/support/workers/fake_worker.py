"""Workers without an engine, for tests of the router."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError, TokenCountError
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.server import listen
from sparsity_worker.calls.ended_leases import Brought, EndedLeases
from support.tiny import tiny_tokenizer
from tokenizers import Tokenizer

_TINY = tiny_tokenizer()
SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
Behaviour = Callable[["FakeWorker", Any, Any], AsyncIterator[inference_pb2.GenerateResponse]]


async def answer(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Three pieces and a completion."""
    for piece in ("a", "b", "c"):
        yield inference_pb2.GenerateResponse(text=piece, token_ids=[ord(piece)])
    completion = inference_pb2.Completion(worker_id=worker.name, finish_reason=inference_pb2.FINISH_REASON_LENGTH)
    if worker.reports:
        tier = request.tier or worker.tier
        density = worker.density_at(tier)
        sparse = density < 1.0
        completion.sparsity.tier = tier
        completion.sparsity.kernel_calls = 30
        completion.sparsity.sparse_kernel_calls = 28 if sparse else 0
        completion.sparsity.prefill_density = density
        completion.sparsity.coverage = worker.coverage
        if worker.measured is not None:
            completion.sparsity.measured_coverage = worker.measured
    yield inference_pb2.GenerateResponse(completion=completion)


async def break_off(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Ends well, without a completion."""
    yield inference_pb2.GenerateResponse(text="x", token_ids=[1])


async def say_nothing(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Ends well, without a message."""
    return
    yield inference_pb2.GenerateResponse()


async def hang(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Never a first token."""
    await asyncio.sleep(3600)
    yield inference_pb2.GenerateResponse()


def fail(code: grpc.StatusCode, after: int = 0) -> Behaviour:
    """Fails with ``code`` after so many messages."""

    async def behave(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        for _ in range(after):
            yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        await context.abort(code, "as told")

    return behave


@dataclass
class FakeWorker:
    """One fake worker on a port of its own; of ``tier`` alone, or of all ``tiers``, the densest of which that is."""

    name: str
    tier: int
    model: Path
    behaviour: Behaviour = answer
    sparse_calls: int | None = None
    sparse_from: int = 0
    requests: int = 0
    places: int = 4
    outstanding: int = 0
    digest: str | None = None
    named: str = ""
    draining: bool = False
    reports: bool = True
    density: float = 0.0
    coverage: float = 0.95
    measured: float | None = None
    densifies: bool = True
    engine: str = ""
    leases: LeaseChecker | None = None
    tiers: tuple[int, ...] = ()
    unproven: tuple[int, ...] = ()
    kv_capacity: int = 0
    held: dict[int, int] = field(default_factory=dict)
    lives: int = 1
    received: list[Any] = field(default_factory=list)
    cancelled: int = 0
    ended: EndedLeases = field(default_factory=EndedLeases)
    address: str = ""
    host: str = "127.0.0.1"
    _server: Any = None
    _tokenizer: Tokenizer = _TINY

    def __post_init__(self) -> None:
        dense = self.tier == inference_pb2.TIER_DENSE
        self.density = self.density or (1.0 if dense else 0.2)
        self.sparse_calls = 5 * (not dense) if self.sparse_calls is None else self.sparse_calls

    def come_back(self, tiers: tuple[int, ...]) -> None:
        """Ends the load streams, as a worker that is started anew does, and serves other tiers."""
        self.tiers = tiers
        self.lives += 1

    def density_at(self, tier: int) -> float:
        """What answers at a tier report."""
        if not self.tiers:
            return self.density
        return 1.0 if tier == inference_pb2.TIER_DENSE else 0.2

    async def start(self) -> FakeWorker:
        # The model of a test may be another by now, or have no files.
        if (file := self.model / "tokenizer.json").exists():
            self._tokenizer = Tokenizer.from_file(str(file))
        endpoint = listen(f"{self.host}:0", {SERVICE: self}, 2**26)
        self._server = endpoint.server
        await endpoint.server.start()
        self.address = f"{self.host}:{endpoint.port}"
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        with self.ended.noted(request, self.leases.redeem(request) if self.leases else None) as brought:
            async for message in self._answers(request, context, brought):
                yield message

    async def _answers(self, request: Any, context: Any, brought: Brought) -> AsyncIterator[Any]:
        if request.tier and request.tier not in (self.tiers or (self.tier,)):
            raise InvalidRequestError.of("tier", f"is not served here: {request.tier}")
        text = request.text
        count = len(self._tokenizer.encode(text.text, add_special_tokens=text.add_special_tokens).ids)
        if request.HasField("text") and not text.min_tokens <= count <= text.max_tokens:
            raise TokenCountError(f"{count} tokens are not in [{text.min_tokens}, {text.max_tokens}]")
        self.received.append(request)
        brought.admitted(count or len(request.prompt.ids))
        try:
            async for response in self.behaviour(self, request, context):
                brought.add(response)
                yield worker_pb2.WorkerServiceGenerateResponse(response=response)
        # The latter where a message was being written at that moment.
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def GetCapabilities(self, request: Any, context: Any) -> worker_pb2.GetCapabilitiesResponse:
        digest = self.digest or hashlib.sha256((self.model / "tokenizer.json").read_bytes()).hexdigest()
        return worker_pb2.GetCapabilitiesResponse(
            worker_id=self.name,
            model=self.named or self.model.name,
            tier=self.tier,
            max_requests=self.places,
            context_length=100_000,
            vocabulary_size=257,
            sparse_from=self.sparse_from,
            dense_reasoning=self.densifies,
            tokenizer_digest=digest,
            proof=worker_pb2.BackendProof(sparse_kernel_calls=self.sparse_calls),
            engine=worker_pb2.EngineFacts(name=self.engine),
            kv_capacity_tokens=self.kv_capacity,
            tiers=[self._served(tier) for tier in self.tiers],
        )

    def _served(self, tier: int) -> worker_pb2.TierCapabilities:
        calls = 5 * ((tier != inference_pb2.TIER_DENSE) is not (tier in self.unproven))
        return worker_pb2.TierCapabilities(
            tier=tier,  # type: ignore[arg-type]
            profile=f"tier{tier}@1",
            proof=worker_pb2.BackendProof(sparse_kernel_calls=calls, density=self.density_at(tier)),
            sparse_from=self.sparse_from,
            dense_reasoning=self.densifies,
        )

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        life, told = self.lives, self.ended.lately()
        while life == self.lives:
            ended, told = self.ended.after(told)
            yield worker_pb2.WatchLoadResponse(
                ended_leases=ended,
                requests=self.requests,
                outstanding_tokens=self.outstanding,
                draining=self.draining,
                tiers=[worker_pb2.TierLoad(tier=tier, requests=count) for tier, count in self.held.items()],  # type: ignore[arg-type]
            )
            await asyncio.sleep(0.05)
