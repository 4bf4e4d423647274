"""What one caller sends costs the others nothing: not a worker, not the event loop, not the router's memory."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_router.gateway import answers, app, body
from sparsity_router.gateway.asking import Asked, read
from sparsity_router.gateway.declared import read_headers
from sparsity_router.gateway.fields import CHAT, COMPLETION
from sparsity_router.gateway.likelihoods import of_text
from sparsity_rpc.errors import InvalidRequestError
from support.routers.http_door import http_door
from support.routers.rig import DENSE
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer

# More than gRPC's servers take without a doubt (8 KiB), and next to what they take at all.
STATE = ",".join(f"{'k' * 120}{number}={'v' * 130}" for number in range(31))
BAGGAGE = ",".join(f"{'b' * 20}{number}={'v' * 60}" for number in range(90))
TRACE = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": STATE, "baggage": BAGGAGE}


async def test_what_a_caller_tells_of_its_trace_refuses_no_worker(tmp_path: Path) -> None:
    """16 KiB of metadata are answered by gRPC itself, in the words of a worker that is full."""
    told: list[dict[str, Any]] = []

    async def listen(worker: FakeWorker, request: Any, context: Any) -> Any:
        told.append(dict(context.invocation_metadata()))
        async for message in answer(worker, request, context):
            yield message

    assert sum(map(len, TRACE.values())) > 15_000
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=listen)
    async with http_door(tmp_path, worker) as door:
        assert (await door.chat(headers=TRACE)).status_code == 200
        # A gRPC caller's own does not come in where it is as much; what does is not passed on either.
        for state in (STATE[:7000].rpartition(",")[0], "vendor=x"):
            metadata = (("traceparent", TRACE["traceparent"]), ("tracestate", state), ("baggage", "a=b"))
            request = inference_pb2.GenerateRequest(text="hi")
            async for _ in door.router.inference.Generate(request, metadata=metadata):
                pass
        assert [found["traceparent"][:35] for found in told] == [TRACE["traceparent"][:35]] * 3
        assert [found.get("tracestate") for found in told] == [None, None, "vendor=x"]
        assert not any("baggage" in found for found in told)


def test_the_pipeline_gets_a_key_and_a_trace_of_the_headers_and_no_more() -> None:
    sent = {**TRACE, "authorization": "Bearer k", "cookie": "c", "sparsity-actor": "root", "x-sparsity-domain": "low"}
    called = read_headers([(name.encode(), value.encode()) for name, value in sent.items()])
    assert called.metadata == (("traceparent", TRACE["traceparent"]), ("authorization", "Bearer k"))
    assert called.declared == {"domain": "low"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("chat_template_kwargs", {"a": [[]] * 30_000}, "must have 65536 at most"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 70_000}}}, "65536 at most"),
        ("stop", ["a"] * 17, "are 17; there may be 16"),
        ("tools", [None] * 129, "are 129; there may be 128"),
        ("logit_bias", {str(token): "no bias" for token in range(301)}, "are 301; there may be 300"),
        ("metadata", {f"labels.{number}": 1 for number in range(129)}, "are 129; there may be 128"),
        ("messages", [{"role": "assistant", "tool_calls": [None] * 129}], "are 129; there may be 128"),
    ],
)
def test_how_much_there_is_of_a_thing_is_looked_at_before_each_of_it(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        read(CHAT, {name: value}, Asked())


def test_token_ids_are_read_by_the_million_in_no_time() -> None:
    asked, ids = Asked(most_ids=2**20), list(range(2**20))
    started = time.process_time()
    read(COMPLETION, {"prompt": ids}, asked)
    took, started = time.process_time() - started, time.process_time()
    assert len([each for each in ids if type(each) is int and each >= 0]) == len(ids)
    # A pass or two over them, however quick the machine; one by one they took dozens.
    assert took < 5 * (time.process_time() - started)
    assert list(asked.message.token_ids.ids) == ids
    with pytest.raises(InvalidRequestError, match="are 1048577; there may be 1048576"):
        read(COMPLETION, {"prompt": [*ids, "x"]}, Asked(most_ids=2**20))
    for bad, place in ((True, 1), (-1, 1), (2**32, 1), (1.0, 1)):
        with pytest.raises(InvalidRequestError) as caught:
            read(COMPLETION, {"prompt": [0, bad, "x"]}, Asked())
        assert caught.value.field == f"prompt[{place}]"


def test_a_body_has_so_many_objects_and_arrays_and_its_texts_any_brackets() -> None:
    brackets = "{[" * 2**18
    assert body.parsed(json.dumps({"a": brackets + '"' + "\\", "b": [brackets]}).encode())["b"] == [brackets]
    for crowd in (b"[" + b"[]," * 2**17 + b"0]", b'{"a":[' + b'{"[":0},' * 2**17 + b"0]}"):
        with pytest.raises(InvalidRequestError, match="more than 131072 objects and arrays"):
            body.parsed(crowd)
    # Names and values are bounded, too, and those of texts are none.
    marks = '",":' * 2**19
    assert body.parsed(json.dumps({"a": marks, "b": [marks]}).encode())["b"] == [marks]
    ids = b'{"prompt":[' + b"7," * (2**20 - 1) + b"7]}"
    assert len(body.parsed(ids)["prompt"]) == 2**20
    for crowd, words in (
        (b'{"a":[' + b"0," * (2**20 + 2**19 + 1) + b"0]}", "more than 1572864 values"),
        (b"{" + b",".join(b'"%d":0' % number for number in range(2**18 + 1)) + b"}", "more than 262144 names"),
        (b'{"a":' + b"9" * 401 + b"}", "a number of 401 digits"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            body.parsed(crowd)
    # None of these is looked through twice.
    for nonsense in (b"{" * 2**17 + b'"' + b"{" * 2**20, b"{" * 2**17 + b"\\" * 2**20, b'"\\' + b"[" * 2**20):
        started = time.process_time()
        with pytest.raises(InvalidRequestError):
            body.parsed(nonsense)
        assert time.process_time() - started < 2.0


async def test_a_long_body_is_read_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else asks is answered while it is read."""
    loaded, release = threading.Event(), threading.Event()
    threads: list[bool] = []

    def parsed(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        if not threads[-1]:
            loaded.set()
            release.wait(20.0)
        return body.parsed(*arguments)

    monkeypatch.setattr(app, "parsed", parsed)
    async with http_door(tmp_path, max_prompt_bytes=2**22) as door:
        asking = asyncio.create_task(door.chat("x" * 2**20))
        try:
            await asyncio.to_thread(loaded.wait, 20.0)
            assert (await door.chat("hi")).status_code == 200
            assert not asking.done()
        finally:
            release.set()
        refused = await asking
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert threads == [False, True]


def test_a_long_answers_places_are_reckoned_once() -> None:
    tokens = [inference_pb2.TokenLogprob(token=b"ab", logprob=-1.0)] * 40_000
    started = time.process_time()
    told = of_text(tokens, 7)
    assert time.process_time() - started < 2.0
    assert told["text_offset"] == list(range(7, 7 + 2 * len(tokens), 2))
    assert of_text([], 7)["text_offset"] == []


async def test_a_long_answer_is_written_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    async def much(worker: FakeWorker, request: Any, context: Any) -> Any:
        async for message in answer(worker, request, context):
            if not message.HasField("completion"):
                message.logprobs.extend([inference_pb2.TokenLogprob(token=b"a", logprob=-1.0)] * 2000)
            yield message

    def joined(messages: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return join(messages)

    join = answers.joined
    monkeypatch.setattr(answers, "joined", joined)
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=much)
    async with http_door(tmp_path, worker) as door:
        found = (await door.chat(logprobs=True)).json()
        assert len(found["choices"][0]["logprobs"]["content"]) == 6000
        worker.behaviour = answer
        assert (await door.chat()).status_code == 200
    assert threads == [False, True]


def test_what_is_null_within_a_field_was_not_sent() -> None:
    function = {"name": "f", "arguments": "{}", "parsed_arguments": None}
    call = {"id": "1", "type": "function", "function": function, "custom": None}
    asked = Asked()
    document = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}]},
            {"role": "assistant", "content": "y", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "custom": None, "function": {"name": "f", "cached": None}}],
        "stream_options": {"include_usage": True, "continuous_usage_stats": None},
        "response_format": {"type": "json_schema", "x": None, "json_schema": {"schema": {}, "example": None}},
        "metadata": {"domain": "low", "session": None},
    }
    read(CHAT, document, asked)
    assert asked.message.chat.messages[0].content == "x"
    assert asked.message.chat.messages[1].tool_calls[0].name == "f"
    assert asked.message.tools[0].name == "f"
    assert (asked.usage, asked.metadata) == (True, {"domain": "low"})
    assert asked.message.sampling.response_format.json_schema == "{}"
    for name, value in (("stream_options", {"x": 0}), ("response_format", {"type": "text", "x": 0})):
        with pytest.raises(InvalidRequestError, match=f"{name}.x: is not known here"):
            read(CHAT, {name: value}, Asked())


def test_a_number_that_no_float_holds_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs: cannot be read"):
        read(CHAT, {"chat_template_kwargs": {"a": 10**400}}, Asked())
