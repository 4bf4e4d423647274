"""What a request needs of workers is read once, and beside the event loop where that takes long."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client.wire import make_request
from sparsity_router.fleet.needs import Need, needs_of
from sparsity_router.relaying import worker_request
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.background.off_loop import OnLoop
from support.routers.rig import DENSE, rig
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer

SHORT = json.dumps({"type": "object"})
LONG = json.dumps({"type": "object", "description": "x" * OnLoop.TOKENIZER})


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each reading, whether the event loop's own thread did it."""
    found: list[bool] = []

    def told(request: worker_pb2.WorkerServiceGenerateRequest) -> frozenset[Need]:
        found.append(threading.current_thread() is threading.main_thread())
        return needs_of(request)

    monkeypatch.setattr(worker_request, "needs_of", told)
    return found


def formatted(schema: str, n: int = 1) -> inference_pb2.GenerateRequest:
    request = make_request("hi", domain="medical")
    request.sampling.response_format.json_schema = schema
    request.n = n
    return request


async def refuses_first(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    if request.request_id.endswith(".1"):
        await context.abort(grpc.StatusCode.INTERNAL, "as told")
    async for response in answer(worker, request, context):
        yield response


@pytest.mark.parametrize(("schema", "on_loop"), [(SHORT, True), (LONG, False)])
async def test_once_for_all_attempts_and_answers(
    tmp_path: Path, readings: list[bool], schema: str, on_loop: bool
) -> None:
    model = tiny_model(tmp_path)
    workers = [FakeWorker(name, DENSE, model, refuses_first, places=8) for name in "abcde"]
    keys = LeaseKeys(LeaseKey("", b"k" * 32))
    async with rig(model, *workers, lease_keys=keys, max_prompt_bytes=2**20) as r:
        _ = [each async for each in r.stub.Generate(formatted(schema, 2), timeout=10.0)]
        assert sum(len(worker.received) for worker in workers) == 4
        assert readings == [on_loop]
        await r.stub.Route(inference_pb2.RouteRequest(request=formatted(schema)))
        assert readings == [on_loop] * 2
