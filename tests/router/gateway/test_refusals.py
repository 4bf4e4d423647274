"""What the HTTP door refuses, and how: OpenAI's form of errors, with the field's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_router.gateway import app
from sparsity_router.gateway import door as listening
from sparsity_router.gateway.refusals import http_status, refusal
from sparsity_router.prompts.chats.chat import read_chat
from sparsity_rpc import errors
from sparsity_rpc.status import to_error
from sparsity_serving.access.access import key_digest
from sparsity_serving.sampling import MAX_TOP_K
from support.routers.http_door import HttpDoor, events, http_door
from support.routers.rig import DENSE, LONG
from support.routers.router import failure
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, fail, hang

ACCESS = f"""
inference: required
principals:
  - {{name: any, key_sha256: {key_digest("any-key")}, roles: [caller]}}
  - {{name: search, key_sha256: {key_digest("search-key")}, roles: [caller], tenant: acme}}
  - {{name: ann, key_sha256: {key_digest("ann-key")}, roles: [viewer]}}
"""
HI = [{"role": "user", "content": "hi"}]


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def called(name: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[HttpDoor]:
    async with http_door(tmp_path) as found:
        yield found


async def test_mistakes_are_told_by_the_name_that_their_caller_gave(door: HttpDoor) -> None:
    """Each by itself, and nothing else in flight is lost."""
    mistakes: list[tuple[dict[str, Any], str, str]] = [
        ({"temperature": 3}, "temperature", "must be in [0.0, 2.0]"),
        ({"temperature": 1e300}, "temperature", "must be in [0.0, 2.0]"),
        ({"temperature": True}, "temperature", "must be a number"),
        ({"top_p": 0}, "top_p", "must be above 0"),
        ({"max_tokens": 0}, "max_tokens", "must be in [1"),
        ({"max_completion_tokens": 10**12}, "max_completion_tokens", "must be in [0"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "send one"),
        ({"max_tokens": 1.5}, "max_tokens", "must be a whole number"),
        ({"seed": -1}, "seed", "must be in [0"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"stop": [1]}, "stop[0]", "must be text"),
        ({"n": 0}, "n", "must be in [1, 16]"),
        ({"n": True}, "n", "must be a whole number"),
        ({"tools": [tool("a")] * 1000}, "tools", "are 1000"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name", "is the name of an earlier one"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is empty"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "must be function"),
        ({"tools": [tool("a", parameters=[])]}, "tools[0].function.parameters", "must be an object"),
        ({"tools": {}}, "tools", "must be an array"),
        ({"tool_choice": "required"}, "tool_choice", "there are no `tools`"),
        ({"tools": [tool("a")], "tool_choice": "must"}, "tool_choice", "must be one of auto, none, required"),
        ({"tools": [tool("a")], "tool_choice": tool("b")}, "tool_choice.function.name", "is none of `tools`"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "must be true or false"),
        ({"verbosity": "high"}, "verbosity", "say it in the prompt"),
        ({"top_k": -2}, "top_k", "must be in [-1"),
        ({"max_tokens": 20.5}, "max_tokens", "must be a whole number"),
        ({"tools": [tool("a")], "tool_choice": "required", "regex": "a"}, "tool_choice", "demands a call"),
        (
            {"tools": [tool("a")], "response_format": {"type": "json_object"}},
            "response_format",
            "no room for calls of `tools`",
        ),
        ({"tools": [tool("a")], "tool_choice": "auto", "regex": "a"}, "regex", "send tool_choice `none`"),
        ({"functions": [{}]}, "functions", "send `tools`"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", "null"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be text, json_object"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex", "stands against another format"),
        ({"regex": "a" * 3000}, "regex", "has 3000 characters"),
        ({"ebnf": ""}, "ebnf", "has 0 bytes"),
        ({"top_logprobs": 21}, "top_logprobs", "must be in [0, 20]"),
        ({"logprobs": 1}, "logprobs", "must be true or false"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "must be a token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "must be a number in [-100, 100]"),
        ({"logit_bias": {"99999": 1}}, "logit_bias[0].token_id", "vocabulary size"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "must be an object"),
        ({"reasoning_effort": "low"}, "reasoning_effort", ""),
        ({"max_teir": "dense"}, "max_teir", "is not known here"),
        ({"metadata": {"max_teir": "dense"}}, "metadata.max_teir", "is not known here"),
        ({"metadata": {"max_tier": "thick"}}, "metadata.max_tier", "must be one of dense, moderate, aggressive"),
        ({"metadata": {"max_tier": 1}}, "metadata.max_tier", "must be text"),
        ({"metadata": []}, "metadata", "must be an object"),
        ({"metadata": {"dense_reasoning": "yes"}}, "metadata.dense_reasoning", "must be true or false"),
        ({"metadata": {"domain": "x" * 300}}, "metadata.domain", "has 300 characters"),
        ({"metadata": {"domain": "\ud800"}}, "metadata.domain", "is no text"),
        ({"metadata": {f"labels.{number}": "x" for number in range(65)}}, "metadata", "must be 64 at most"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "is not known here"),
        ({"priority": 12}, "priority", "must be in [0, 9]"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": None}, "messages", "is missing"),
        ({"messages": "hi"}, "messages", "must be an array"),
        ({"messages": [*HI, "hi"]}, "messages[1]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "is no text"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "is missing"),
        ({"messages": [*HI, {"role": "robot", "content": "4"}]}, "messages[1].role", "must be one of system"),
        ({"messages": [{"role": "user", "content": "4", "tool_call_id": "1"}]}, "messages[0].tool_call_id", "tool's"),
        (
            {"messages": [{"role": "user", "content": "4", "reasoning_content": "1"}]},
            "messages[0].reasoning_content",
            "",
        ),
        ({"messages": [*HI, called("b c")]}, "messages[1].tool_calls[0].function.name", "is no name"),
        (
            {"messages": [*HI, called("b", '{"a":' * 33 + "1" + "}" * 33)]},
            "messages[1].tool_calls[0].function.arguments",
            "32 deep",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "no user"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages", "are 10001"),
        ({"model": None}, "model", "is missing"),
        ({"model": 5}, "model", "must be text"),
    ]
    waiting = asyncio.create_task(door.chat())
    for fields, param, words in mistakes:
        answer = await door.chat(**fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_request")
        assert error["param"] == param, fields
        assert words in error["message"], fields
        assert error["sparsity"]["reason"] == "INVALID_REQUEST"
    assert (await waiting).status_code == 200


async def test_what_is_too_long_for_the_model_is_told_as_openai_does(door: HttpDoor) -> None:
    """Frameworks go by the code, or by the words, and shorten the conversation."""
    long = {"model": door.model, "prompt": [1] * 4096}
    chat = {"model": door.model, "messages": [{"role": "user", "content": "y" * 5000}]}
    for path, body, param in (("/v1/chat/completions", chat, "messages"), ("/v1/completions", long, "prompt")):
        answer = await door.post(path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
        assert "this model's maximum context length is 4096 tokens" in error["message"]
        assert error["sparsity"]["reason"] == "INVALID_REQUEST"
        assert error["sparsity"]["contextLength"] == "4096"
    error = await failure(door.router.inference.Explain(inference_pb2.ExplainRequest(request=make_request("y" * 5000))))
    assert to_error(error).metadata["contextLength"] == "4096"


async def test_a_prompt_that_is_none(door: HttpDoor) -> None:
    for prompt, param in (
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        (["a", "b"], "prompt"),
        ([1, "b"], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([2**31], "prompt"),
        ({}, "prompt"),
        ("y" * 30_000_000, None),
    ):
        answer = await door.post("/v1/completions", json={"model": door.model, "prompt": prompt})
        assert answer.status_code == (413 if param is None else 400), str(prompt)[:20]
        assert answer.json()["error"]["param"] == param, str(prompt)[:20]


async def test_all_mistakes_are_told_at_once(door: HttpDoor) -> None:
    message = (await door.chat(n=99, seed="x", what=1)).json()["error"]["message"]
    assert all(f"{name}: " in message for name in ("n", "seed", "what"))


async def test_an_error_is_short_however_long_the_request_was(door: HttpDoor) -> None:
    for fields in ({f"{'x' * 1000}{number}": 1 for number in range(1000)}, {"x" * 10**6: 1}, {"model": "m" * 10**6}):
        answer = await door.chat(**fields)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 4096
    many = (await door.chat(**{f"f{number}": 1 for number in range(1000)})).json()["error"]["message"]
    assert many.count("is not known here") == 20
    assert many.endswith("body: is not read any further after these mistakes")


async def test_a_name_that_is_no_text_is_told_as_it_came(door: HttpDoor) -> None:
    for fields, param in (({"\ud800": 1}, "\\ud800"), ({"logit_bias": {"\udc00": 1}}, "logit_bias.\\udc00")):
        answer = await door.chat(**fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_every_refusal_is_counted(door: HttpDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "count_error", lambda method, code: counted.append((method, code.name)))
    await door.post("/v1/embeddings", json={})
    await door.post("/v1/models", json={})
    await door.post(content=b"{}")
    await door.chat(n=99)
    monkeypatch.setattr(app, "declare", lambda *_: 1 / 0)
    assert (await door.chat()).status_code == 500
    names = ["NOT_FOUND", *["INVALID_ARGUMENT"] * 3, "UNKNOWN"]
    assert counted == [("sparsity.v1.InferenceService/Generate", name) for name in names]


async def test_who_is_still_there_is_told_of_what_somebody_else_cancelled(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=fail(grpc.StatusCode.CANCELLED))
    async with http_door(tmp_path, worker) as door:
        for stream in (False, True):
            answer = await door.chat(stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_an_answer_bears_its_callers_id_or_the_decisions(door: HttpDoor) -> None:
    async with door.client() as client:
        messages: Any = HI
        answer = await client.chat.completions.create(model=door.model, messages=messages)
        assert answer.id == f"chatcmpl-{answer._request_id}"
    for fields, status in (({}, 200), ({"stream": True}, 200), ({"n": 99}, 400)):
        told = await door.chat(headers={"x-request-id": "mine"}, **fields)
        assert (told.status_code, told.headers["x-request-id"]) == (status, "mine")


async def test_a_call_that_was_cut_off_is_sent_back(door: HttpDoor) -> None:
    for cut in ('{"city": "Bo', "[1]"):
        messages = [*HI, called("weather", cut), {"role": "tool", "tool_call_id": "1", "content": "x"}, *HI]
        assert (await door.chat(messages=messages)).status_code == 200
        assert json.dumps(cut) in door.workers[0].received[-1].text.text
    # What it says is scanned all the same.
    asked = inference_pb2.GenerateRequest()
    turn = asked.chat.messages.add(role="assistant")
    turn.tool_calls.add(id="1", name="weather", arguments='{"city": "secret wo')
    assert '{"city": "secret wo' in list(read_chat(asked).written())


async def test_what_asks_for_nothing_is_taken(door: HttpDoor) -> None:
    nothing: dict[str, Any] = {"n": 1, "tools": [], "parallel_tool_calls": True, "response_format": {"type": "text"}}
    nothing |= {"logprobs": False, "logit_bias": {}, "verbosity": "medium", "top_k": -1, "max_tokens": 20.0}
    ignored = {"user": "u", "service_tier": "auto", "prediction": {"type": "content", "content": "x"}, "audio": None}
    cached = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}]
    messages: list[Any] = [{"role": "user", "name": "ann", "content": parts, "tool_calls": None}]
    assert (await door.chat(messages=messages, **nothing, **ignored)).status_code == 200
    got = door.workers[0].received[-1]
    assert got.text.text == "[user]a\nb[assistant]"
    assert (got.sampling.max_new_tokens, got.sampling.top_k == MAX_TOP_K) == (20, True)
    assert (await door.chat(top_k=0)).status_code == 200
    assert door.workers[0].received[-1].sampling.top_k == MAX_TOP_K
    plain = {"model": door.model, "prompt": "hi", "suffix": "", "best_of": 1, "echo": False}
    assert (await door.post("/v1/completions", json=plain)).status_code == 200
    # As frameworks send an answer of nothing back, and as vLLM names what was thought.
    for said in (
        {"content": None, "tool_calls": []},
        {"content": None},
        {"content": "x", "reasoning": "hm", **cached},
        {"content": "x", "reasoning": "hm", "reasoning_content": "hm"},
    ):
        sent = [*HI, {"role": "assistant", **said}, *HI]
        assert (await door.chat(messages=sent)).status_code == 200, said
    differ = [*HI, {"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_content": "oh"}, *HI]
    assert (await door.chat(messages=differ)).json()["error"]["param"] == "messages[1].reasoning_content"


async def test_bodies_that_are_none(door: HttpDoor) -> None:
    kind = {"content-type": "application/json"}
    for content, words in (
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"temperature": NaN}', "NaN is no number"),
        (b'{"temperature": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b"[" * 100_000, "is nested too deeply"),
    ):
        answer = await door.post(content=content, headers=kind)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body"), content[:20]
        assert words in answer.json()["error"]["message"]
    for headers in ({"content-type": "text/plain"}, {}, {**kind, "content-encoding": "gzip"}):
        answer = await door.post(content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert (await door.post("/v1/embeddings", json={})).status_code == 404
    assert (await door.post("/v1/models", json={})).headers["allow"] == "GET"


async def test_a_long_body_is_refused_before_it_is_read(door: HttpDoor) -> None:
    async with door.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(model=door.model, prompt="y" * 50_000_000)
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    # Nothing of it was sent.
    answer = await door.raw(head + b"content-length: 50000000\r\nexpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    chunk = b"100000\r\n" + b"y" * 2**20 + b"\r\n"
    answer = await door.raw(head + b"transfer-encoding: chunked\r\n\r\n" + chunk * 20 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_nonsense_on_the_wire_is_answered_and_harms_nobody(
    door: HttpDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    counted: list[str] = []
    monkeypatch.setattr(listening, "count_error", lambda method, code: counted.append(code.name))
    waiting = asyncio.create_task(door.chat())
    cases = (
        (b"\x00\x01\x02\r\n\r\n", "illegal request line"),
        (b"GET /health HTTP/1.1\r\n\r\n", "Host"),
        (head + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n", "illegal chunk header: ('nonsense"),
        (head + b"transfer-encoding: chunked\r\n\r\n5\r\nabcdefg\r\n", "malformed chunk"),
        (head + b"content-length: many\r\n\r\n", "bad Content-Length"),
        (head + b"content-length: -1\r\n\r\n", "bad Content-Length"),
        (head + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "conflicting Content-Length"),
        (head + b"x-sparsity-domain: a\rx-sparsity-max-tier: aggressive\r\n\r\n", "('x-sparsity-domain')"),
        (head + b"x-sparsity-domain: a\x00b\r\n\r\n", "('x-sparsity-domain')"),
        (head + b"x-sparsity-domain : a\r\n\r\n", "illegal header line: ('x-sparsity-domain ')"),
        (head + b"authorization : Bearer sk-secret\r\n\r\n", "('authorization ')"),
        (head + b"a: " + b"b" * 100_000, "too long"),
    )
    for data, words in cases:
        answer = await door.raw(data)
        start, _, body = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 400 "), data[:120]
        assert b"\r\nconnection: close" in start.lower()
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
        assert words in error["message"], data[:120]
        assert "secret" not in error["message"]
    assert counted == ["INVALID_ARGUMENT"] * len(cases)
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_nonsense_behind_what_has_no_body_is_answered_once(
    method: bytes, door: HttpDoor, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await door.raw(method + b" /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 400 ")
    assert (b"HTTP/1.1" in body, body == b"") == (False, method == b"HEAD")
    assert not [record for record in caplog.records if record.exc_info]


async def test_nonsense_behind_a_refusal_is_not_answered_again(
    door: HttpDoor, caplog: pytest.LogCaptureFixture
) -> None:
    """The body of a request that was refused by its head, which nobody reads."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(head + b"\r\n5\r\nabcde\r\n")
    answer = await reader.readuntil(b"}}")
    assert answer.startswith(b"HTTP/1.1 415 ")
    writer.write(b"nonsense\r\n")
    assert await reader.read() == b""
    writer.close()
    assert not [record for record in caplog.records if record.exc_info]


async def test_headers_that_are_none(door: HttpDoor) -> None:
    twice = [("x-sparsity-max-tier", "dense"), ("x-sparsity-max-tier", "aggressive")]
    for headers, param, words in (
        ({"x-sparsity-max-teir": "dense"}, "x-sparsity-max-teir", "is not known here"),
        ({"x-sparsity-max-tier": "thick"}, "x-sparsity-max-tier", "must be one of"),
        ({"x-sparsity-domain": b"\xff"}, "x-sparsity-domain", "is no UTF-8"),
        ({"x-sparsity-domain": "x" * 300}, "x-sparsity-domain", "has 300 characters"),
        ({"x-sparsity-timeout": "soon"}, "x-sparsity-timeout", "must be seconds"),
        ({"x-sparsity-timeout": "nan"}, "x-sparsity-timeout", "must be seconds"),
        ({"x-sparsity-timeout": "-1"}, "x-sparsity-timeout", "must be seconds"),
        ({"x-request-id": "x" * 300}, "x-request-id", "has 300 characters"),
        (twice, "x-sparsity-max-tier", "is there twice"),
    ):
        answer = await door.post(json={"model": door.model, "messages": HI}, headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), headers
        assert words in error["message"]
    differing = await door.chat(headers={"x-sparsity-max-tier": "dense"}, metadata={"max_tier": "aggressive"})
    assert differing.json()["error"]["param"] == "metadata.max_tier"


async def test_keys_and_tenants_are_those_of_grpc(tmp_path: Path) -> None:
    (tmp_path / "access.yaml").write_text(ACCESS)
    (tmp_path / "limits.yaml").write_text("tenants: {acme: {requests: 2/day}}")
    options: dict[str, Any] = {"access": tmp_path / "access.yaml", "tenant_limits": tmp_path / "limits.yaml"}
    async with http_door(tmp_path, **options) as door:
        assert (await door.chat()).status_code == 200
        async with door.client(api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as unknown:
                await client.models.list()
            assert unknown.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                await client.completions.create(model=door.model, prompt="hi")
        # A stranger's body is not read.
        answer = await door.raw(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")
        async with door.client(api_key="ann-key") as client:
            with pytest.raises(openai.PermissionDeniedError):
                await client.completions.create(model=door.model, prompt="hi")
        async with door.client(api_key="search-key") as client:
            await client.completions.create(model=door.model, prompt="hi")
            assert door.workers[0].received[-1].cache_salt
            other = {"x-sparsity-tenant": "another"}
            with pytest.raises(openai.PermissionDeniedError):
                await client.completions.create(model=door.model, prompt="hi", extra_headers=other)
            await client.completions.create(model=door.model, prompt="hi")
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model=door.model, prompt="hi")
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 86_400
        told: Any = caught.value.body
        assert told["sparsity"]["limit"] == "2 requests per day"
        assert told["sparsity"]["decisionId"] == caught.value.response.headers["x-sparsity-decision-id"]


async def test_a_worker_that_fails(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    for after, status in ((0, 503), (1, 200)):
        worker = FakeWorker("d", DENSE, model, behaviour=fail(grpc.StatusCode.UNAVAILABLE, after))
        async with http_door(tmp_path, worker) as door:
            whole = await door.chat()
            error = whole.json()["error"]
            assert whole.status_code == (503 if not after else 502)
            assert error["type"] == "server_error"
            assert error["sparsity"]["tier"] == "dense"
            # It would be asked again by itself, after a part of the answer.
            assert whole.headers.get("x-should-retry") == ("false" if after else None)
            # For a moment the worker is left alone.
            streamed = await door.chat(stream=True)
            while streamed.status_code != status:
                streamed = await door.chat(stream=True)
            if not after:
                continue
            told = events(streamed.text)
            assert told[-1]["error"]["code"] == "stream_broken"
            assert "[DONE]" not in told
            async with door.client() as client:
                messages: Any = HI
                stream = await client.with_options(max_retries=9).chat.completions.create(
                    model=door.model, messages=messages, stream=True
                )
                with pytest.raises(openai.APIError, match="mid-stream"):
                    [chunk async for chunk in stream]


async def test_a_deadline(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=hang)
    async with http_door(tmp_path, worker) as door:
        for stream in (True, False):
            late = await door.chat(LONG, headers={"x-sparsity-timeout": "0.3"}, stream=stream)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
            assert late.json()["error"]["sparsity"]["decisionId"] == late.headers["x-sparsity-decision-id"]
        await asyncio.sleep(0.1)
        assert worker.cancelled == 2


def test_every_kind_of_errors_has_a_status_of_http() -> None:
    def below(kind: type[errors.SparsityError]) -> list[type[errors.SparsityError]]:
        return [kind, *(each for one in kind.__subclasses__() for each in below(one))]

    for kind in below(errors.SparsityError):
        assert 400 <= http_status(kind) < 600
    told = refusal(errors.OverloadedError("full", 0.2), (("sparsity-tier", "dense"),))
    assert told.headers == (("retry-after", "1"), ("retry-after-ms", "200"))
    assert told.error["sparsity"] == {"reason": "OVERLOADED", "tier": "dense", "retryDelay": "0.2s"}
