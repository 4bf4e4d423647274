"""What one caller sends is bounded before anybody works on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.errors import DrainingError
from sparsity.status import to_error
from sparsity.v1 import inference_pb2
from sparsity_client import make_request
from sparsity_router.fleet import Admission
from support.fake_worker import FakeWorker
from support.rig import AGGRESSIVE, DENSE, LONG, refusal, rig
from support.tiny import CONTEXT, tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


async def fields(r: Any, request: inference_pb2.GenerateRequest) -> list[str]:
    """The fields that Generate, Route and Explain name alike."""

    async def stream() -> None:
        async for _ in r.stub.Generate(request):
            pass

    error: Any = to_error(await refusal(stream()))
    explained: Any = to_error(await refusal(r.stub.Explain(inference_pb2.ExplainRequest(request=request))))
    named = [violation.field for violation in error.violations]
    assert named == [violation.field for violation in explained.violations]
    return named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 2**31),
        ("top_k", 2**32 - 1),
        ("max_new_tokens", 0),
        ("max_new_tokens", CONTEXT + 1),
        ("max_new_tokens", 2**32 - 1),
        ("temperature", -1e-45),
        ("temperature", 2.001),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.001),
        ("top_p", float("nan")),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1025]),
    ],
)
async def test_no_sampling_field_goes_past_what_engines_take(model: Path, name: str, value: Any) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        request = make_request("hi", domain="low")
        request.sampling.MergeFrom(inference_pb2.SamplingParams(**{name: value}))
        assert await fields(r, request) == [f"sampling.{name}"]
        assert r.workers[0].received == []


async def test_a_range_is_told_in_words(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        request = make_request("hi", domain="low")
        request.sampling.top_p = 0.0
        error = await refusal(r.stub.Explain(inference_pb2.ExplainRequest(request=request)))
        assert error.details() == "sampling.top_p: must be above 0 and at most 1, not 0"


async def dies(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    await asyncio.sleep(0.1)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    yield inference_pb2.GenerateResponse()


async def leaves(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    raise DrainingError("this worker is draining")
    yield inference_pb2.GenerateResponse()


@pytest.mark.parametrize("hedge_seconds", [0.0, 0.05])
async def test_what_two_workers_died_of_is_not_tried_on_a_third(model: Path, hedge_seconds: float) -> None:
    fleet = [FakeWorker(f"a{n}", AGGRESSIVE, model, behaviour=dies) for n in range(2)]
    rest = [FakeWorker("a2", AGGRESSIVE, model, outstanding=10**6), FakeWorker("d", DENSE, model)]
    admission = Admission(hedge_seconds=hedge_seconds)
    async with rig(model, *fleet, *rest, admission=admission) as r:
        error = await refusal(r.generate(LONG))
        assert error.code() is grpc.StatusCode.ABORTED
        assert "2 workers died with this request in flight; it is not tried on another" in error.details()
        assert [len(worker.received) for worker in r.workers] == [1, 1, 0, 0]


async def test_who_refuses_has_not_died_of_the_request(model: Path) -> None:
    fleet = [FakeWorker(f"a{n}", AGGRESSIVE, model, behaviour=leaves) for n in range(2)]
    async with rig(model, *fleet, FakeWorker("d", DENSE, model)) as r:
        assert (await r.generate(LONG))[1].worker_id == "d"
