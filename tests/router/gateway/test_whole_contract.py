"""Tools, formats, log-probabilities and thoughts by OpenAI's client: as asked to the worker, as OpenAI has it back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.status import answer as end
from support.routers.http_door import http_door
from support.routers.rig import DENSE, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

WEATHER: ChatCompletionToolUnionParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
ASKED: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "How is the weather in Bonn?"},
]


def ended(worker: FakeWorker, reason: inference_pb2.FinishReason) -> inference_pb2.GenerateResponse:
    completion = inference_pb2.Completion(worker_id=worker.name, finish_reason=reason)
    completion.usage.completion_tokens, completion.usage.reasoning_tokens = 9, 4
    return inference_pb2.GenerateResponse(completion=completion)


async def calls(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Thinks, speaks, and calls two tools at once, in parts."""
    yield inference_pb2.GenerateResponse(reasoning="They ask for Bonn.", token_ids=[1])
    yield inference_pb2.GenerateResponse(text="Let me see.", token_ids=[2])
    for parts in (
        [(0, "c-1", "weather", '{"city":')],
        [(0, "", "", ' "Bonn"}'), (1, "c-2", "weather", "")],
        [(1, "", "", "{}")],
    ):
        deltas = [
            inference_pb2.ToolCallDelta(index=index, id=call, name=name, arguments=arguments)
            for index, call, name, arguments in parts
        ]
        yield inference_pb2.GenerateResponse(tool_calls=deltas, token_ids=[3])
    yield ended(worker, inference_pb2.FINISH_REASON_TOOL_CALLS)


async def likely(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """An `ö` in two tokens, and an `x`, each with an alternative."""
    other = inference_pb2.TokenAlternative(token_id=5, token=b"y", logprob=-2.0)
    for text, token, logprob in (("", b"\xc3", -0.5), ("ö", b"\xb6", -0.25), ("x", b"x", -1.0)):
        found = inference_pb2.TokenLogprob(token_id=4, token=token, logprob=logprob, top=[other])
        yield inference_pb2.GenerateResponse(text=text, token_ids=[4], logprobs=[found])
    yield ended(worker, inference_pb2.FINISH_REASON_STOP)


async def jotted(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    yield inference_pb2.GenerateResponse(text='{"city": "Bonn", "degrees": 7}', token_ids=[1])
    yield ended(worker, inference_pb2.FINISH_REASON_STOP)


async def test_tools_are_called_and_answered(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=calls)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        asked: dict[str, Any] = {"model": door.model, "tools": [WEATHER], "tool_choice": "auto"}
        answer = await client.chat.completions.create(messages=ASKED, **asked)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        extra: Any = choice.message.model_extra
        assert extra["reasoning_content"] == "They ask for Bonn."
        found = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()
                 if call.type == "function"]  # fmt: skip
        assert found == [("c-1", "weather", '{"city": "Bonn"}'), ("c-2", "weather", "{}")]
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 4
        assert "Of a city." in worker.received[-1].text.text
        # As a caller goes on: what came is sent back, with what the tools said.
        back: Any = [*ASKED, choice.message.model_dump(), *(
            {"role": "tool", "tool_call_id": call, "content": "7 degrees"} for call in ("c-1", "c-2")
        )]  # fmt: skip
        again = await client.chat.completions.create(messages=back, **asked)
        assert again.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_wants_one_call_gets_one(tmp_path: Path, *, stream: bool) -> None:
    """As LangChain's structured output asks, whatever the model does."""
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=calls)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        asked: dict[str, Any] = {"model": door.model, "messages": ASKED, "tools": [WEATHER]}
        for wanted, ids in ((False, ["c-1"]), (True, ["c-1", "c-2"])):
            if stream:
                async with client.chat.completions.stream(**asked, parallel_tool_calls=wanted) as events:
                    choice: Any = (await events.get_final_completion()).choices[0]
            else:
                choice = (await client.chat.completions.create(**asked, parallel_tool_calls=wanted)).choices[0]
            assert [call.id for call in choice.message.tool_calls] == ids
            assert choice.finish_reason == "tool_calls"


async def test_tools_are_called_in_a_stream(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=calls)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        # The client's own accumulation is what agents go by.
        async with client.chat.completions.stream(model=door.model, messages=ASKED, tools=[WEATHER]) as stream:
            async for _ in stream:
                pass
            final = (await stream.get_final_completion()).choices[0]
        assert final.finish_reason == "tool_calls"
        found = [(call.id, json.loads(call.function.arguments)) for call in final.message.tool_calls or ()]
        assert found == [("c-1", {"city": "Bonn"}), ("c-2", {})]
        choices: list[tuple[Any, str]] = [("required", "mode"), ("none", "mode")]
        choices.append(({"type": "function", "function": {"name": "weather"}}, "name"))
        for choice, _ in choices:
            created = await client.chat.completions.create(
                model=door.model, messages=ASKED, tools=[WEATHER], tool_choice=choice
            )
            assert created.choices


async def test_parts_of_one_call_in_one_message_are_one_part(tmp_path: Path) -> None:
    """As a worker sends them whose router was slow to read."""

    async def at_once(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        told = inference_pb2.GenerateResponse()
        async for message in calls(worker, request, context):
            told.MergeFrom(message)
        yield told

    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=at_once)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        async with client.chat.completions.stream(model=door.model, messages=ASKED, tools=[WEATHER]) as stream:
            deltas = [event.chunk.choices[0].delta async for event in stream if event.type == "chunk"]
            final = (await stream.get_final_completion()).choices[0]
        assert [[part.index for part in delta.tool_calls] for delta in deltas if delta.tool_calls] == [[0, 1]]
        found = [(call.id, call.function.name, call.function.arguments) for call in final.message.tool_calls or ()]
        assert found == [("c-1", "weather", '{"city": "Bonn"}'), ("c-2", "weather", "{}")]


async def refuses_a_tool(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    """As workers do in whose terms tools are part of the chat."""
    await end(context, InvalidRequestError.of("chat.tools[0].parameters", "cannot be used"))
    yield


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_that_only_a_worker_finds_wrong_is_named(tmp_path: Path, *, stream: bool) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=refuses_a_tool)
    async with http_door(tmp_path, worker) as door:
        refused = await door.chat(tools=[WEATHER], tool_choice="required", stream=stream)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools[0].function.parameters")


async def half_a_call(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Begins a call, and never ends it."""
    begun = inference_pb2.ToolCallDelta(index=0, id="c-1", name="weather", arguments="{")
    yield inference_pb2.GenerateResponse(tool_calls=[begun], token_ids=[1])
    await asyncio.sleep(3600)


async def test_who_leaves_in_a_call_of_a_tool_ends_the_engines_request(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=half_a_call)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        stream = await client.chat.completions.create(model=door.model, messages=ASKED, tools=[WEATHER], stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.tool_calls:
                break
        await stream.close()
        await until(lambda: worker.cancelled == 1, 5.0)


async def test_an_answer_is_held_to_a_schema(tmp_path: Path) -> None:
    class Weather(pydantic.BaseModel):
        city: str
        degrees: int

    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=jotted)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        parsed = await client.chat.completions.parse(model=door.model, messages=ASKED, response_format=Weather)
        assert parsed.choices[0].message.parsed == Weather(city="Bonn", degrees=7)
        wanted = worker.received[-1].sampling.response_format
        assert json.loads(wanted.json_schema)["required"] == ["city", "degrees"]
        await client.chat.completions.create(
            model=door.model, messages=ASKED, response_format={"type": "json_object"}, extra_body={"min_p": 0.5}
        )
        assert worker.received[-1].sampling.response_format.json_object
        assert worker.received[-1].sampling.min_p == 0.5


async def test_tokens_are_told_with_their_log_probabilities(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=likely)
    async with http_door(tmp_path, worker) as door, door.client() as client:
        asked: dict[str, Any] = {"model": door.model, "messages": ASKED, "logprobs": True, "top_logprobs": 1}
        whole = (await client.chat.completions.create(**asked)).choices[0]
        assert whole.logprobs is not None
        assert whole.logprobs.content is not None
        assert b"".join(bytes(token.bytes or ()) for token in whole.logprobs.content).decode() == "öx"
        assert [token.logprob for token in whole.logprobs.content] == [-0.5, -0.25, -1.0]
        assert whole.logprobs.content[2].top_logprobs[0].token == "y"
        assert worker.received[-1].logprobs.top == 1
        stream = await client.chat.completions.create(stream=True, **asked)
        told = [chunk.choices[0] async for chunk in stream]
        assert sum(len(choice.logprobs.content or ()) for choice in told if choice.logprobs) == 3
        text = (await client.completions.create(model=door.model, prompt="hi", logprobs=1)).choices[0]
        assert text.logprobs is not None
        assert text.logprobs.token_logprobs == [-0.5, -0.25, -1.0]
        assert text.logprobs.tokens is not None
        assert text.logprobs.tokens[2] == "x"
        biased = {"logit_bias": {"65": -100}, "seed": 7}
        await client.chat.completions.create(model=door.model, messages=ASKED, **biased)  # type: ignore[call-overload]
        sampling = worker.received[-1].sampling
        assert [(bias.token_id, bias.bias) for bias in sampling.logit_bias] == [(65, -100.0)]
        assert sampling.seed == 7
