"""A caller's request id is a label: whoever shares one with whom, every stream goes on to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_router.fleet import workers
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from support.routers.rig import DENSE, Rig, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer

KEYS = LeaseKeys(LeaseKey("", b"k" * 32))


class Held:
    """A worker that answers once it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        yield inference_pb2.GenerateResponse(text=">", token_ids=[1])
        await self.go.wait()
        async for response in answer(worker, request, context):
            yield response


def labelled(label: str, tenant: str = "one") -> inference_pb2.GenerateRequest:
    request = make_request("hi", domain="low", tenant=tenant)
    request.request_id = label
    return request


async def answered(at: Rig, request: inference_pb2.GenerateRequest) -> tuple[str, str]:
    text, decision = "", ""
    async for response in at.stub.Generate(request, timeout=10.0):
        text += response.text
        decision = response.completion.decision.decision_id or decision
    return text, decision


@pytest.mark.parametrize("tenants", [("one", "two"), ("one", "one")], ids=["of two tenants", "of one tenant"])
async def test_two_live_requests_of_one_label_are_each_answered(tmp_path: Path, tenants: tuple[str, str]) -> None:
    held = Held()
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path), behaviour=held)
    async with rig(tmp_path, worker) as at:
        asked = [asyncio.create_task(answered(at, labelled("x", tenant))) for tenant in tenants]
        await until(lambda: len(worker.received) == 2)
        held.go.set()
        (first, one), (second, other) = await asyncio.gather(*asked)
        assert first == second == ">abc"
        assert len({one, other}) == 2
        assert {request.request_id for request in worker.received} == {f"{one}.1", f"{other}.1"}


async def test_a_label_that_looks_like_an_attempt_of_another_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_EXPECTED_SECONDS", 0.1)
    held = Held()
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path), behaviour=held)
    async with rig(tmp_path, worker, lease_keys=KEYS) as at:
        asked = asyncio.create_task(answered(at, labelled("x")))
        await until(lambda: worker.received)
        routed = await at.stub.Route(inference_pb2.RouteRequest(request=labelled("x.1")))
        assert routed.decision.decision_id
        # What the route announced is no longer expected by then.
        await asyncio.sleep(0.3)
        assert at.fleet.workers[0].in_flight == 1
        held.go.set()
        assert (await asked)[0] == ">abc"
