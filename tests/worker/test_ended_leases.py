"""What a worker tells routers of requests that clients brought themselves."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_serving.access.leases import sign
from sparsity_worker.calls.ended_leases import EndedLeases
from sparsity_worker.echo.model import write_echo_model
from support.routers.rig import refusal
from support.workers.echo_worker import KEYS, answer, echo, request


def brought(decision: str, text: str = "hi", **fields: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    """A request as a client brings it: by the decision's id, which routers number."""
    asked = request(text, **fields)
    asked.request_id, asked.tier = decision, inference_pb2.TIER_MODERATE
    asked.lease.CopyFrom(sign(KEYS, asked, "echo-1", decision))
    return asked


async def told(stub: Any, loads: Any = None) -> list[Any]:
    """What the next reports tell, or the first one of a stream."""
    if loads is None:
        return list((await stub.WatchLoad(worker_pb2.WatchLoadRequest()).read()).ended_leases)
    found: list[Any] = []
    async with asyncio.timeout(10.0):
        while not found:
            found += (await loads.read()).ended_leases
    return found


async def until_left(stub: Any) -> None:
    """Until nothing runs any more."""
    async with asyncio.timeout(10.0):
        async for load in stub.WatchLoad(worker_pb2.WatchLoadRequest()):
            if not load.requests:
                return


def digest(decision: str) -> bytes:
    return hashlib.sha256(decision.encode()).digest()


async def test_each_is_told_once_a_stream_with_what_it_came_to(tmp_path: Path) -> None:
    async with echo(write_echo_model(tmp_path / "echo"), require_lease=True) as stub:
        loads = stub.WatchLoad(worker_pb2.WatchLoadRequest())
        assert not (await loads.read()).ended_leases
        _, completion = await answer(stub, brought("d1"))
        (ended,) = await told(stub, loads)
        usage = completion.usage
        assert (ended.decision_digest, ended.tier) == (digest("d1"), inference_pb2.TIER_MODERATE)
        assert ended.tokens == usage.prompt_tokens + usage.completion_tokens > 0
        assert ended.completion.worker_id == "echo-1"
        # What routers relay is numbered; they see it themselves.
        relayed = request("hi")
        relayed.request_id, relayed.tier = "d2.1", inference_pb2.TIER_MODERATE
        relayed.lease.CopyFrom(sign(KEYS, relayed, "echo-1", "d2"))
        await answer(stub, relayed)
        await answer(stub, brought("d3"))
        assert [each.decision_digest for each in await told(stub, loads)] == [digest("d3")]
        # A router whose stream broke off misses nothing.
        assert [each.decision_digest for each in await told(stub)] == [digest("d1"), digest("d3")]


async def test_what_was_refused_or_left_is_told_too(tmp_path: Path) -> None:
    async with echo(write_echo_model(tmp_path / "echo")) as stub:
        wrong = brought("refused", temperature=9)
        assert (await refusal(answer(stub, wrong))).code() is grpc.StatusCode.INVALID_ARGUMENT
        # No lease is used up by who shows another's, or none.
        assert (await refusal(answer(stub, wrong))).code() is grpc.StatusCode.PERMISSION_DENIED
        call = stub.Generate(brought("left", "x" * 300))
        await call.read()
        call.cancel()
        await until_left(stub)
        found = await told(stub)
        assert [(each.decision_digest, each.HasField("completion")) for each in found] == [
            (digest("refused"), False),
            (digest("left"), False),
        ]
        assert found[0].tokens == 0
        assert 300 < found[1].tokens < 700


@pytest.mark.parametrize(("answered", "tokens"), [(0, 0), (2, 12)])
def test_what_failed_before_it_was_answered_cost_nothing(answered: int, tokens: int) -> None:
    ended = EndedLeases()
    claims = inference_pb2.LeaseClaims(decision_id="d", tier=inference_pb2.TIER_DENSE)
    own = worker_pb2.WorkerServiceGenerateRequest(request_id="d")

    def fails() -> None:
        with ended.noted(own, claims) as one:
            one.admitted(10)
            if answered:
                one.add(inference_pb2.GenerateResponse(token_ids=[1] * answered))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert [each.tokens for each in ended.after(0)[0]] == [tokens]


def test_a_report_goes_without_its_layers_and_few_are_kept() -> None:
    ended = EndedLeases()
    completion = inference_pb2.Completion()
    completion.sparsity.kernel_calls = 3
    completion.sparsity.layers.add()
    for number in range(2000):
        claims = inference_pb2.LeaseClaims(decision_id=str(number))
        with ended.noted(worker_pb2.WorkerServiceGenerateRequest(request_id=str(number)), claims) as one:
            one.add(inference_pb2.GenerateResponse(completion=completion))
    kept, count = ended.after(0)
    assert (len(kept), count, ended.lately()) == (1024, 2000, 2000 - 1024)
    assert kept[-1].decision_digest == digest("1999")
    assert (kept[0].completion.sparsity.kernel_calls, len(kept[0].completion.sparsity.layers)) == (3, 0)
    assert len(completion.sparsity.layers) == 1
