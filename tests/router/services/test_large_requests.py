"""One call of many bytes stops nobody else's: it is refused by its size, or read beside the event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_router.callers.admission import Callers
from sparsity_router.callers.fields import check_size
from sparsity_router.prompts.chats.chat import read_chat
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.status import to_error
from sparsity_serving.bounds import MAX_MESSAGES
from sparsity_serving.fields.documents import MAX_DOCUMENT, MAX_TOGETHER
from support.loop_time import loop_is_free
from support.routers.rig import DENSE, refusal, rig
from support.tiny import SPECIAL, tiny_model
from support.workers.fake_worker import FakeWorker

# As long to read as JSON of this length can be.
CROWD = '{"a":[' + "[]," * 20_000 + "0]}"
BRACKETS = '{"a":"' + "{[" * (MAX_DOCUMENT // 2 - 4) + '"}'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


def with_calls(turns: int, calls: int, arguments: str) -> inference_pb2.GenerateRequest:
    request = make_request("", domain="low")
    call = inference_pb2.ToolCall(id="c", name="f", arguments=arguments)
    turn = inference_pb2.ChatMessage(role="assistant", content="hi", tool_calls=[call] * calls)
    request.chat.messages.extend([turn] * turns)
    return request


def with_tools(count: int, parameters: str) -> inference_pb2.GenerateRequest:
    request = make_request("", domain="low")
    request.chat.messages.add(role="user", content="hi")
    for number in range(count):
        request.tools.add(name=f"t{number}", parameters=parameters)
    return request


REFUSED = {
    "29 MiB of calls": (with_calls(4, 128, CROWD), "request"),
    "arguments": (with_calls(1, 20, CROWD), "chat.messages"),
    "parameters": (with_tools(128, CROWD), "tools"),
    "objects": (with_calls(2, 1, CROWD), "chat.messages"),
    "objects of parameters": (with_tools(2, CROWD), "tools"),
    "calls": (with_calls(100, 101, ""), "chat.messages"),
}


@pytest.mark.parametrize(("request_", "field"), REFUSED.values(), ids=REFUSED)
async def test_too_much_is_refused_and_holds_up_nobody(model: Path, request_: Any, field: str) -> None:
    async with rig(model, FakeWorker("d", DENSE, model), callers=Callers(max_prompt_bytes=2**22)) as r:
        async with loop_is_free():
            error: Any = to_error(await refusal(r.stub.Explain(inference_pb2.ExplainRequest(request=request_))))
        assert [violation.field for violation in error.violations] == [field]
        assert r.workers[0].received == []


async def test_as_much_as_is_taken_holds_up_nobody(model: Path) -> None:
    """It is read and rendered beside the loop; the tiny model takes no prompt of its length."""
    request = with_calls(1, MAX_TOGETHER // MAX_DOCUMENT - 5, BRACKETS)
    request.tools.extend(with_tools(4, BRACKETS).tools)
    request.tools.add(name="crowd", parameters=CROWD)
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        async with loop_is_free():
            explained = inference_pb2.ExplainRequest(request=request)
            refused = await asyncio.gather(*(refusal(r.stub.Explain(explained)) for _ in range(2)))
        assert {error.details().partition(" ")[0] for error in refused} <= {"prompt:", "chat.messages:"}
        assert not any("together" in error.details() for error in refused)


async def test_control_tokens_that_are_written_out_are_read_beside_the_loop(model: Path) -> None:
    (end,) = SPECIAL
    text = end * (2**22 // len(end))
    async with rig(model, FakeWorker("d", DENSE, model), max_prompt_bytes=2**22) as r:
        for prompt in (text, inference_pb2.ChatPrompt(messages=[{"role": "user", "content": text}])):
            explained = inference_pb2.ExplainRequest(request=make_request(prompt, domain="low"))
            async with loop_is_free(0.3):
                errors = await asyncio.gather(*(refusal(r.stub.Explain(explained)) for _ in range(3)))
            # Broken up they are longer than a prompt's bytes may be, which count as they came.
            assert {error.details().partition(":")[0] for error in errors} == {"prompt"}


def test_documents_are_counted_in_bytes_and_up_to_the_last() -> None:
    whole = '{"a":"' + "é" * ((MAX_DOCUMENT - 8) // 2) + '"}'
    assert len(whole.encode()) == MAX_DOCUMENT
    count = MAX_TOGETHER // MAX_DOCUMENT
    assert len(read_chat(with_calls(1, count, whole)).messages[0]["tool_calls"]) == count
    more = with_calls(1, count, whole)
    more.chat.messages[0].tool_calls.add(id="c", name="f", arguments="{}")
    with pytest.raises(InvalidRequestError, match=f"have parameters and arguments of {MAX_TOGETHER + 2} bytes"):
        read_chat(more)
    with pytest.raises(InvalidRequestError, match=f"have {MAX_MESSAGES + 100} calls"):
        read_chat(with_calls(101, 100, "{}"))


def test_a_request_has_room_for_all_that_its_parts_may_be() -> None:
    """A prompt of the most bytes, in the form that takes the most, and beside it the most of everything."""
    largest = make_request([2**28] * 2**20, domain="low")
    for number in range(64):
        largest.context.flags.append("\U0001f600" * 256)
        largest.context.labels[f"{number}" + "\U0001f600" * 254] = "\U0001f600" * 256
    largest.sampling.stop.extend(["\U0001f600" * 1024] * 16)
    largest.sampling.response_format.json_schema = "x" * MAX_DOCUMENT
    largest.chat_template_kwargs["a"] = "x" * (8 * MAX_DOCUMENT)
    chat = with_calls(MAX_MESSAGES, 1, "x" * (MAX_TOGETHER // MAX_MESSAGES))
    chat.tools.extend(with_tools(16, "x" * MAX_DOCUMENT).tools)
    together = largest.ByteSize() + chat.ByteSize()
    assert check_size(largest, 2**22) == largest.ByteSize()
    assert together < 2 * 2**22 + 2**22
    with pytest.raises(InvalidRequestError, match="request: has"):
        check_size(make_request("x" * (3 * 2**22 + 1)), 2**22)
