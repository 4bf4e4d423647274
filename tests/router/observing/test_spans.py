"""What the spans of a request say by the conventions, at its client, its router and its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_rpc import semconv, tracing
from sparsity_rpc.errors import SparsityError
from sparsity_rpc.generation import completed, requested
from sparsity_worker.echo.model import write_echo_model
from support.routers.http_door import http_door
from support.routers.rig import DENSE, rig, until
from support.telemetry.tracing import Spans
from support.tiny import tiny_model
from support.workers import echo_worker
from support.workers.fake_stock import FakeStock
from support.workers.fake_worker import FakeWorker, fail

REQUIRED = {semconv.GEN_AI_OPERATION_NAME, semconv.GEN_AI_PROVIDER_NAME, semconv.GEN_AI_REQUEST_MODEL}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    yield Spans(monkeypatch)
    monkeypatch.undo()
    tracing.forget()


async def used(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """One token and a completion with all kinds of tokens."""
    yield inference_pb2.GenerateResponse(text="a", token_ids=[97])
    usage = inference_pb2.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3, reasoning_tokens=2)
    reason = inference_pb2.FINISH_REASON_TOOL_CALLS
    told = inference_pb2.Completion(worker_id=worker.name, usage=usage, model="tiny", finish_reason=reason)
    yield inference_pb2.GenerateResponse(completion=told)


async def test_a_chat_is_told_of_alike_by_its_client_and_its_router(tmp_path: Path, spans: Spans) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path), behaviour=used, reports=False)
    messages = [inference_pb2.ChatMessage(role="user", content="a private text")]
    chat = inference_pb2.ChatPrompt(messages=messages)
    asked = make_request(chat, domain="low", tenant="acme", session="talk-7", max_new_tokens=8)
    asked.model = "tiny"
    async with rig(tmp_path, worker) as at, AsyncWireClient(at.address) as client:
        assert [response async for response in client.generate(asked)]
        await until(lambda: spans.all("client.generate"))
        host, _, port = at.address.rpartition(":")
        of_worker = worker.address.rpartition(":")[2]
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sparsity",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.conversation.id": "talk-7",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "rpc.system.name": "grpc",
        "rpc.method": "sparsity.v1.InferenceService/Generate",
        "rpc.response.status_code": "OK",
    }
    asking, routed, sent = (spans.told(name) for name in ("client.generate", "router.generate", "router.dispatch"))
    assert wanted.items() <= asking.items()
    assert wanted.items() <= routed.items()
    assert (asking["server.address"], asking["server.port"]) == (host, int(port))
    assert (sent["rpc.method"], sent["rpc.response.status_code"]) == ("sparsity.v1.WorkerService/Generate", "OK")
    assert sent["server.port"] == int(of_worker)
    assert not {"error.type"} & (asking.keys() | routed.keys() | sent.keys())
    for name in ("client.generate", "router.generate"):
        assert spans.all(name)[-1].instrumentation_scope.schema_url == semconv.SCHEMA_URL  # type: ignore[union-attr]
    assert "private" not in spans.everything()
    assert "acme" not in spans.everything()


async def test_a_stock_server_is_called_by_its_own_contract(tmp_path: Path, spans: Spans) -> None:
    model = tiny_model(tmp_path)
    server = await FakeStock(model).start()
    try:
        async with rig(model, places=(server.address,)) as at:
            await at.generate("hi", domain="medical")
    finally:
        await server.stop()
    sent = spans.told("router.dispatch")
    assert sent["rpc.method"] == "sglang.grpc.scheduler.SglangScheduler/Generate"
    assert f"{sent['server.address']}:{sent['server.port']}" == server.address.removeprefix("sglang+grpc://")
    assert spans.told("router.generate")["gen_ai.usage.cache_read.input_tokens"] == 2


async def test_an_error_has_its_type_everywhere(tmp_path: Path, spans: Spans) -> None:
    refuses = fail(grpc.StatusCode.INVALID_ARGUMENT)
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path), behaviour=refuses)
    async with rig(tmp_path, worker) as at, AsyncWireClient(at.address) as client:
        with pytest.raises(SparsityError):
            [response async for response in client.generate(make_request("hi", domain="low"))]
        await until(lambda: spans.all("client.generate"))
    for name in ("client.generate", "router.generate", "router.dispatch"):
        told = spans.told(name)
        assert (told["error.type"], told["rpc.response.status_code"]) == ("INVALID_ARGUMENT",) * 2, name


async def test_the_other_door_is_no_call_of_grpc(tmp_path: Path, spans: Spans) -> None:
    async with http_door(tmp_path, FakeWorker("d", DENSE, tiny_model(tmp_path / "model"))) as door:
        assert (await door.chat()).status_code == 200
    told = spans.told("router.generate")
    assert told.keys() >= REQUIRED
    assert not [name for name in told if name.startswith("rpc.")]


@pytest.mark.parametrize(("is_chat", "operation"), [(True, "chat"), (False, "text_completion")])
async def test_a_worker_tells_the_same_of_its_part(tmp_path: Path, spans: Spans, is_chat: bool, operation: str) -> None:
    asked = echo_worker.request("hi there")
    if is_chat:
        asked.chat.SetInParent()
    async with echo_worker.echo(write_echo_model(tmp_path / "echo")) as stub:
        await echo_worker.answer(stub, asked)
        await until(lambda: spans.all("worker.generate"))
    told = spans.told("worker.generate")
    assert told.keys() >= REQUIRED | {semconv.GEN_AI_USAGE_INPUT_TOKENS, semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS}
    assert told["gen_ai.operation.name"] == operation
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert (told["rpc.method"], told["rpc.response.status_code"]) == ("sparsity.v1.WorkerService/Generate", "OK")
    assert "there" not in spans.everything()


def test_what_nobody_asked_for_is_not_told() -> None:
    plain = requested(inference_pb2.GenerateRequest(text="hi"), "")
    assert plain == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "sparsity",
        "gen_ai.request.stream": True,
    }
    asked = inference_pb2.GenerateRequest(text="hi", n=3)
    asked.sampling.seed, asked.sampling.top_k, asked.sampling.stop[:] = 2**64 - 1, 5, ["secret"]
    asked.sampling.response_format.json_schema = "{}"
    told = requested(asked, "m")
    assert told["gen_ai.request.choice.count"] == 3
    assert told["gen_ai.request.top_k"] == 5
    assert told["gen_ai.output.type"] == "json"
    assert "gen_ai.request.seed" not in told
    assert "secret" not in str(told)
    # Of a worker that is newer than we are.
    newer = completed(inference_pb2.Completion(finish_reason=99))  # type: ignore[arg-type]
    assert "gen_ai.response.finish_reasons" not in newer


@pytest.mark.parametrize(
    ("target", "address", "port"),
    [
        ("router:8000", "router", 8000),
        ("dns:///router.svc:8000", "router.svc", 8000),
        ("[::1]:8000", "::1", 8000),
        ("unix:/run/router.sock", "unix:/run/router.sock", None),
    ],
)
def test_who_is_called_is_told_by_name_and_port(target: str, address: str, port: int | None) -> None:
    wanted = {"server.address": address} | ({"server.port": port} if port else {})
    assert tracing.server_of(target) == wanted
