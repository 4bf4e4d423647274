"""A worker with an engine without a model, in this process, and what requests to it take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_serving.access.access import Access
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.engines import ECHO
from sparsity_serving.server import listen
from sparsity_worker.calls.identity import Identity, echoed
from sparsity_worker.calls.load import Load
from sparsity_worker.calls.service import WorkerService
from sparsity_worker.calls.worker_metrics import WorkerMetrics
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.echo.model import CONTEXT
from sparsity_worker.server import SERVICE
from tokenizers import Tokenizer

KEYS = LeaseKeys(LeaseKey("", b"k" * 32))


@asynccontextmanager
async def echo(
    model: Path,
    tiers: str = "moderate",
    metrics: WorkerMetrics | None = None,
    load: Load | None = None,
    kind: type[EchoEngine] = EchoEngine,
    **options: Any,
) -> AsyncIterator[Any]:
    """A stub of a worker in this process, with an engine of ``kind``."""
    config = WorkerConfig("echo-1", (tiers,), model, engine=ECHO, **options)
    tokenizer = ModelTokenizer(model)
    engine = kind(Tokenizer.from_file(str(model / "tokenizer.json")))
    identity = Identity(config, ModelFacts.read(model, config.served_model_name), echoed(config), tokenizer.digest)
    leases = LeaseChecker(KEYS, config.worker_id, [each.tier for each in identity.tiers])
    own, access = Tokenizer.from_file(str(model / "tokenizer.json")), Access.load(config.access)
    service = WorkerService(engine, own, identity, load or Load(4), leases, metrics, access)
    endpoint = listen("127.0.0.1:0", {SERVICE: service}, 2**26)
    await endpoint.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.port}") as channel:
        yield worker_pb2_grpc.WorkerServiceStub(channel)
    await endpoint.server.stop(None)


def request(text: str, tokens: int = 1000, **sampling: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    made = worker_pb2.WorkerServiceGenerateRequest(request_id="r1")
    made.text.text, made.text.max_tokens = text, CONTEXT
    made.sampling.max_new_tokens = tokens
    for name, value in sampling.items():
        setattr(made.sampling, name, value)
    return made


async def answer(stub: Any, asked: worker_pb2.WorkerServiceGenerateRequest) -> tuple[str, inference_pb2.Completion]:
    text, completion = "", inference_pb2.Completion()
    async for message in stub.Generate(asked):
        text += message.response.text
        if message.response.HasField("completion"):
            completion = message.response.completion
    return text, completion
