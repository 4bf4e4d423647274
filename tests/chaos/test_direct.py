"""Faults of streams that clients take to workers themselves, and of calls that are refused before they are parsed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_rpc.errors import SparsityError
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker
from support.asked.serialized import empty_turns
from support.ports import free_port
from support.routers.chaos_fleet import fleet
from support.routers.rig import DENSE
from support.routers.router import failure
from support.telling import tell
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer

pytestmark = pytest.mark.chaos
KEY = b"k" * 32


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file of the key that routers sign leases with."""
    file = tmp_path / "key"
    file.write_bytes(KEY)
    return file


def leases(worker: FakeWorker) -> LeaseChecker:
    return LeaseChecker(LeaseKeys(LeaseKey("", KEY)), worker.name, {worker.tier})  # type: ignore[arg-type]


async def test_a_kill_switch_reaches_a_direct_request_in_line(tmp_path: Path, key: Path) -> None:
    async with fleet(tmp_path, lease_key_file=key) as at:
        # Sparse ones find no room, and dense ones the last place.
        at.moderate.requests = at.aggressive.requests = at.dense.places
        at.dense.requests = at.dense.places - 1
        await asyncio.sleep(0.5)
        asked = inference_pb2.RouteRequest(request=make_request("y" * 120, domain="rag"))
        routing = asyncio.ensure_future(at.router.inference.Route(asked, timeout=20.0))
        await asyncio.sleep(0.5)
        assert not routing.done()
        switch = policy_pb2.Override(id="k", scope=1, reason="incident")
        await at.router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=switch))
        routed = await routing
        assert (routed.decision.tier, routed.endpoint) == (DENSE, at.dense.address)
        came = f"a lease for d at {inference_pb2.Reason.Name(routed.decision.reason)}"
    tell("A1", "rag, to be streamed directly, in line when the switch is thrown", came, at.others)


async def test_a_dense_worker_whose_direct_answer_shows_pruning_is_taken_out(tmp_path: Path, key: Path) -> None:
    liar = FakeWorker("liar", DENSE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, liar, lease_key_file=key) as at:
        liar.leases, liar.density = leases(liar), 0.9
        served = []
        async with AsyncWireClient(at.router.address) as client:
            for _ in range(4):
                asked = make_request("hi", domain="code", max_tier=DENSE)
                found = [response async for response in client.generate(asked, 10.0, direct=True)]
                served.append(found[-1].completion.worker_id)
                # Its next report of its load says so.
                await asyncio.sleep(0.3)
        assert served == ["liar", "d", "d", "d"]
    tell("A9", "dense requests, streamed directly, one worker prunes", f"answers of {served}", at.others)


async def test_who_only_says_that_it_fell_back_pays_for_what_its_worker_did(tmp_path: Path, key: Path) -> None:
    (tmp_path / "limits.yaml").write_text("tenants: {t: {tokens: 1000/hour}}")
    files = {"tenant_limits": tmp_path / "limits.yaml", "lease_key_file": key}

    async def long(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in answer(worker, request, context):
            if response.HasField("completion"):
                response.completion.usage.prompt_tokens = response.completion.usage.completion_tokens = 100
            yield response

    async with fleet(tmp_path, **files) as at:
        at.aggressive.behaviour = long
        at.aggressive.leases = leases(at.aggressive)
        made, answers = make_request("y" * 120, domain="rag", tenant="t"), 0
        with contextlib.suppress(SparsityError, grpc.aio.AioRpcError):
            async with AsyncWireClient(at.router.address) as client:
                while answers < 20:
                    found = [response async for response in client.generate(made, 10.0, direct=True)]
                    answers += 1
                    claim = (("sparsity-fell-back", found[-1].completion.decision.decision_id),)
                    async for response in at.router.inference.Generate(made, metadata=claim):
                        answers += response.HasField("completion")
                    # The worker's next report of its load tells what it did.
                    await asyncio.sleep(0.3)
        assert 3 <= answers <= 6
    sent = "direct streams of 200 tokens on 1,000 an hour, each said to have fallen back once it was read"
    tell("B6", sent, f"{answers} answers in all", at.others)


async def test_what_a_call_holds_is_bounded_before_it_is_parsed(tmp_path: Path) -> None:
    port = free_port()
    turns = empty_turns(6 * 2**20)
    zeros = b'{"model":"tiny","prompt":[' + b"0," * (4 * 2**20) + b"0]}"
    async with fleet(tmp_path, http_listen=f"127.0.0.1:{port}") as at:
        before = psutil.Process().memory_info().rss
        call: Any = at.router.channel.unary_unary("/sparsity.v1.InferenceService/Generate", lambda sent: sent)
        error = await failure(call(turns))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT, "request: has more than 131072 messages in it",
        )  # fmt: skip
        assert psutil.Process().memory_info().rss - before < 200 * 2**20
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as session:
            url = f"http://127.0.0.1:{port}/v1/completions"
            answer = (await session.post(url, content=zeros, headers=headers)).json()["error"]
        assert answer["message"].startswith("body: has more than ")
    came = f"refused: {error.details()}; {answer['message']}"
    sent = f"{len(turns) >> 20} MiB of empty turns, and by HTTP {len(zeros) >> 20} MiB of zeros"
    tell("B3", sent, came, at.others)
