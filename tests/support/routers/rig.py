"""A router over fake workers, in the test's process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2, inference_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_policies.documents.document import parse_policy
from sparsity_router.decisions.sessions import Sessions
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.workers import State
from sparsity_router.models.models import Model, Models
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_router.relaying.shadow import Shadow
from sparsity_router.server import INFERENCE
from sparsity_router.services.inference import InferenceService
from sparsity_serving.engines import SGLANG
from sparsity_serving.server import listen
from support.stores.snapshots import snapshot
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

DENSE, MODERATE, AGGRESSIVE = (
    inference_pb2.TIER_DENSE,
    inference_pb2.TIER_MODERATE,
    inference_pb2.TIER_AGGRESSIVE,
)
BANDS = [
    {"from_tokens": 0, "tier": "dense"},
    {"from_tokens": 50, "tier": "moderate"},
    {"from_tokens": 100, "tier": "aggressive"},
]
LONG = "y" * 120


@dataclass
class Policies:
    """A snapshot that changes where a test changes it."""

    snapshot: Any
    age: float = 0.0

    def now(self) -> float:
        return time.time()


@dataclass
class Rig:
    """A router over fake workers."""

    channel: Any
    stub: Any
    fleet: Fleet
    workers: list[FakeWorker]
    policies: Policies
    address: str

    async def generate(self, prompt: Any = LONG, timeout: float = 10.0, **options: Any) -> tuple[str, Any]:
        text, completion = "", None
        options.setdefault("domain", "low")
        async for response in self.stub.Generate(make_request(prompt, **options), timeout=timeout):
            text += response.text
            completion = response.completion if response.HasField("completion") else completion
        return text, completion


@asynccontextmanager
async def rig(
    folder: Path,
    *workers: FakeWorker,
    sessions: Sessions | None = None,
    places: tuple[str, ...] = (),
    admission: Admission | None = None,
    shadow: Callable[[Any], Shadow] | None = None,
    shadow_policy: dict[str, Any] | None = None,
    engine: str = SGLANG,
    max_prompt_bytes: int = 10_000,
    worker_seconds: float = 1.0,
    **service_options: Any,
) -> AsyncIterator[Rig]:
    # A test may have changed what is there.
    model = folder if (folder / "tokenizer.json").exists() else tiny_model(folder)
    asked = {"shadow": shadow_policy} if shadow_policy else {}
    policy = parse_policy({"domain": "low", "risk": "low", "bands": BANDS} | asked)
    policies = Policies(snapshot([policy]))
    for worker in workers:
        await worker.start()
    tokenizer = ModelTokenizer(model, "tiny")
    found = tuple(worker.address for worker in workers) + places
    template = tokenizer.template.source if tokenizer.template else ""
    stock = StockModel.of(tokenizer.tokenizer, tokenizer.served, tokenizer.digest, tokenizer.config, template)
    admission = admission or Admission(queue_seconds=0.0)
    fleet = Fleet(found, tokenizer.digest, worker_seconds, None, admission, engine=engine, model=stock)
    classifier, known = Classifier(tokenizer, max_prompt_bytes), cast(Any, policies)
    repeats = shadow(known) if shadow else None
    options = {"sessions": sessions, "shadow": repeats, **service_options}
    service = InferenceService(Models(Model(classifier, fleet)), known, **options)
    endpoint = listen("127.0.0.1:0", {INFERENCE: service}, 2**26)
    await endpoint.server.start()
    watching = [asyncio.create_task(fleet.watch())]
    if repeats is not None:
        watching.append(asyncio.create_task(repeats.run()))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.port}")
    try:
        await until(
            lambda: all(worker.capabilities and worker.state is not State.UNREACHABLE for worker in fleet.workers)
        )
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        yield Rig(channel, stub, fleet, list(workers), policies, f"127.0.0.1:{endpoint.port}")
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await channel.close()
        await endpoint.server.stop(None)
        await fleet.close()
        for worker in workers:
            await worker.stop()


async def until(holds: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def refusal(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
