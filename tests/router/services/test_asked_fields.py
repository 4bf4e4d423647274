"""What a request asks for beside its prompt: bounded by name, carried to the worker through lease and hedge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client import (
    CalledTool,
    Logprobs,
    Message,
    RawText,
    Regex,
    Request,
    Sampling,
    Tool,
    ToolCall,
)
from sparsity_client.wire.requests import to_message
from sparsity_router.fleet.fleet import Admission
from sparsity_rpc.errors import InvalidRequestError, LeaseError
from sparsity_rpc.status import to_error
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker, sign
from support.routers.rig import DENSE, Rig, refusal, rig
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, hang

TOOL = Tool("f", "does it", {"type": "object"}, strict=True)
DEEP = "[" * 40 + "]" * 40


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Tools written out are more than the tiny model's context.
    roomy = partial(tiny_model, context=4096)
    monkeypatch.setattr("support.routers.rig.tiny_model", roomy)
    return roomy(tmp_path)


async def asked(r: Rig, message: inference_pb2.GenerateRequest) -> inference_pb2.Completion:
    responses = [response async for response in r.stub.Generate(message)]
    return responses[-1].completion


def biased(*pairs: tuple[int, float]) -> inference_pb2.GenerateRequest:
    message = to_message(Request("hi"))
    for token_id, bias in pairs:
        message.sampling.logit_bias.add(token_id=token_id, bias=bias)
    return message


def choosing(**choice: Any) -> inference_pb2.GenerateRequest:
    message = to_message(Request("hi", tools=(TOOL,)))
    message.tool_choice.CopyFrom(inference_pb2.ToolChoice(**choice))
    return message


def held_to(**form: Any) -> inference_pb2.GenerateRequest:
    message = to_message(Request("hi"))
    message.sampling.response_format.CopyFrom(inference_pb2.ResponseFormat(**form))
    return message


def sampled(**sampling: Any) -> inference_pb2.GenerateRequest:
    return to_message(Request("hi", sampling=Sampling(**sampling)))


def tools(*them: Tool, **others: Any) -> inference_pb2.GenerateRequest:
    return to_message(Request("hi", tools=them, **others))


def counted(properties: int, name: str = "minProperties") -> str:
    """A schema of an object whose properties are counted."""
    return json.dumps({"type": "object", "properties": {f"p{number}": {} for number in range(properties)}, name: 1})


def referred(to: str, **others: Any) -> str:
    """A schema of an object with a property that is as a reference says."""
    return json.dumps({"type": "object", "properties": {"a": {"$ref": to}}, **others})


HALF = Message("assistant", "", (ToolCall("c", "f", '{"a": ["\\udfff"]}'),))
REFUSED: list[tuple[inference_pb2.GenerateRequest, str]] = [
    (to_message(Request("hi", model="another")), "model"),
    (sampled(repetition_penalty=0.12), "sampling.repetition_penalty"),
    (sampled(repetition_penalty=2.1), "sampling.repetition_penalty"),
    (sampled(min_p=1.1), "sampling.min_p"),
    (biased(*((token, 1.0) for token in range(301))), "sampling.logit_bias"),
    (biased((257, 1.0)), "sampling.logit_bias[0].token_id"),
    (biased((5, 1.0), (5, 2.0)), "sampling.logit_bias[1].token_id"),
    (biased((5, 100.5)), "sampling.logit_bias[0].bias"),
    (biased((5, float("nan"))), "sampling.logit_bias[0].bias"),
    (held_to(), "sampling.response_format"),
    (held_to(json_object=False), "sampling.response_format.json_object"),
    (held_to(json_schema="{"), "sampling.response_format.json_schema"),
    (held_to(json_schema="[]"), "sampling.response_format.json_schema"),
    (held_to(json_schema='{"a": NaN}'), "sampling.response_format.json_schema"),
    (held_to(json_schema='{"a": 1e999}'), "sampling.response_format.json_schema"),
    (held_to(json_schema=f'{{"a": {DEEP}}}'), "sampling.response_format.json_schema"),
    (held_to(json_schema="[" * 60_000), "sampling.response_format.json_schema"),
    (held_to(json_schema=json.dumps({"a": "x" * 65_536})), "sampling.response_format.json_schema"),
    (held_to(json_schema='{"pattern": "\\u0000"}'), "sampling.response_format.json_schema"),
    (held_to(json_schema=counted(129)), "sampling.response_format.json_schema"),
    (held_to(json_schema=f'{{"anyOf": [{counted(100)}, {counted(100, "maxProperties")}]}}'),
     "sampling.response_format.json_schema"),
    (tools(Tool("f", parameters=counted(129), strict=True)), "tools[0].parameters"),
    (tools(Tool("f", parameters=counted(129)), tool_choice="required"), "tools[0].parameters"),
    (tools(*(Tool(f"t{n}", parameters=counted(100), strict=True) for n in range(2))), "tools[1].parameters"),
    (tools(*(Tool(f"t{n}", parameters=counted(12)) for n in range(128)), tool_choice="required"),
     "tools[113].parameters"),
    (tools(Tool("f", parameters=counted(100)), Tool("g", parameters=counted(100), strict=True),
           tool_choice=CalledTool("f")), "tools[1].parameters"),
    # Held to nothing itself, it is read beside one that is.
    (tools(Tool("f", parameters=counted(129)), Tool("g", strict=True)), "tools[0].parameters"),
    (held_to(json_schema=referred("#/default", default=json.loads(counted(129)))),
     "sampling.response_format.json_schema"),
    (held_to(json_schema=referred("#/$defs", **{"$defs": {"properties": {"default": json.loads(counted(129))}}})),
     "sampling.response_format.json_schema"),
    (held_to(json_schema=json.dumps({"properties": {"default": json.loads(counted(129))}})),
     "sampling.response_format.json_schema"),
    (held_to(json_schema='{"pattern": "a\\ud800"}'), "sampling.response_format.json_schema"),
    (held_to(json_schema='{"\\ud800": 1}'), "sampling.response_format.json_schema"),
    (held_to(regex=""), "sampling.response_format.regex"),
    (held_to(regex="a" * 2049), "sampling.response_format.regex"),
    (held_to(regex="a\0"), "sampling.response_format.regex"),
    (held_to(grammar=""), "sampling.response_format.grammar"),
    (held_to(grammar="x" * 65_537), "sampling.response_format.grammar"),
    (sampled(response_format=Regex("a"), ignore_eos=True), "sampling.ignore_eos"),
    (to_message(Request("hi", logprobs=Logprobs(21))), "logprobs.top"),
    (tools(*(Tool(f"t{number}") for number in range(1000))), "tools"),
    (tools(Tool("")), "tools[0].name"),
    (tools(TOOL, Tool("with space")), "tools[1].name"),
    (tools(Tool("x" * 65)), "tools[0].name"),
    (tools(TOOL, TOOL), "tools[1].name"),
    (tools(Tool("f", parameters="{")), "tools[0].parameters"),
    (tools(Tool("f", parameters="3")), "tools[0].parameters"),
    (tools(Tool("f", parameters='{"title": "\\ud83d"}')), "tools[0].parameters"),
    (tools(TOOL, tool_choice=CalledTool("g")), "tool_choice.name"),
    (tools(tool_choice="required"), "tool_choice"),
    (tools(TOOL, tool_choice="required", sampling=Sampling(response_format=Regex("a"))), "tool_choice"),
    (tools(TOOL, sampling=Sampling(response_format=Regex("a"))), "sampling.response_format"),
    (tools(TOOL, tool_choice="auto", sampling=Sampling(response_format=Regex("a"))), "sampling.response_format"),
    (choosing(), "tool_choice"),
    (choosing(mode=0), "tool_choice.mode"),
    (choosing(mode=9), "tool_choice.mode"),
    (to_message(Request(RawText("hi"), tools=(TOOL,))), "tools"),
    (to_message(Request(RawText("hi"), reasoning_effort="low")), "reasoning_effort"),
    (to_message(Request(RawText("hi"), chat_template_kwargs={"a": 1})), "chat_template_kwargs"),
    (to_message(Request("hi", chat_template_kwargs={"a": 1})), "chat_template_kwargs.a"),
    (to_message(Request((HALF,))), "chat.messages[0].tool_calls[0].arguments"),
]  # fmt: skip


async def test_what_makes_no_sense_is_refused_by_name_and_no_worker_sees_it(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        for message, field in REFUSED:
            for call in (asked(r, message), r.stub.Explain(inference_pb2.ExplainRequest(request=message))):
                error = to_error(await refusal(call))
                assert isinstance(error, InvalidRequestError)
                assert [each.field for each in error.violations] == [field]
        assert r.workers[0].received == []


async def test_properties_that_are_counted_or_called_so_are_taken(model: Path) -> None:
    named = {"type": "object", "properties": {"properties": {f"p{n}": {} for n in range(200)}, "minProperties": {}}}
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        for schema in (counted(128), json.dumps(named)):
            await asked(r, held_to(json_schema=schema))
        # Of one that nobody is held to no grammar is made.
        await asked(r, tools(Tool("f", parameters=counted(129))))
        # Nor of those beside the one that is to be called.
        many = tuple(Tool(f"t{number}", parameters=counted(100)) for number in range(3))
        await asked(r, tools(*many, tool_choice=CalledTool("t1")))
        assert len(r.workers[0].received) == 4


@pytest.mark.parametrize("keyword", ["default", "enum", "const", "examples"])
async def test_what_no_schema_says_counts_nothing(model: Path, keyword: str) -> None:
    large = json.loads(counted(129))
    nothing = large | {"minProperties": 0}
    data = {keyword: [large] if keyword in ("enum", "examples") else large}
    schemas = [
        nothing,
        {"type": "object", "properties": {"a": data}},
        json.loads(referred("#/$defs/a", **{"$defs": {"a": {"items": data}}})),
    ]
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        for schema in schemas:
            await asked(r, held_to(json_schema=json.dumps(schema)))
        assert len(r.workers[0].received) == 3


async def test_an_escaped_pair_is_a_character(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        await asked(r, held_to(json_schema='{"pattern": "\\ud83d\\ude00"}'))
        assert len(r.workers[0].received) == 1


WISHES = Request(
    (Message("user", "hi"), Message("assistant", "", (ToolCall("c", "f", "{}"),)), Message("tool", "1")),
    tools=(TOOL, Tool("g")),
    tool_choice="auto",
    logprobs=Logprobs(2, True),
    model="tiny",
    sampling=Sampling(seed=3, logit_bias={5: -1.0}, min_p=0.5),
)  # fmt: skip


async def test_a_worker_gets_what_was_asked_for(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        message = to_message(WISHES)
        await asked(r, message)
        (got,) = r.workers[0].received
        assert got.sampling == message.sampling
        assert got.logprobs == message.logprobs
        assert list(got.chat.tools) == list(message.tools)
        assert got.chat.tool_choice == message.tool_choice
        assert "<tool_response>" in got.text.text or got.prompt.ids
        await asked(r, to_message(Request("hi", tools=(TOOL,), tool_choice="none")))
        await asked(r, to_message(Request(RawText("hi"))))
        await asked(r, held := held_to(json_schema='{"type": "object"}'))
        assert r.workers[0].received.pop().sampling == held.sampling
        none, plain = (each.chat for each in r.workers[0].received[1:])
        assert (list(none.tools), none.HasField("tool_choice")) == ([], False)
        assert [each.HasField("chat") for each in r.workers[0].received] == [True, True, False]
        assert plain == worker_pb2.ChatParsing()


async def test_a_lease_is_good_for_what_was_asked_and_nothing_else(model: Path) -> None:
    keys = LeaseKeys(LeaseKey("", b"a key of sixteen bytes or more"))
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        await asked(r, to_message(WISHES))
        (got,) = r.workers[0].received
    checker = LeaseChecker(keys, "d", {DENSE})
    for other in (
        worker_pb2.WorkerServiceGenerateRequest(logprobs=inference_pb2.LogprobOptions(top=9)),
        worker_pb2.WorkerServiceGenerateRequest(chat=worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="h")])),
        worker_pb2.WorkerServiceGenerateRequest(sampling=inference_pb2.SamplingParams(min_p=1.0)),
    ):
        got.lease.CopyFrom(sign(keys, got, "d", "decision"))
        changed = worker_pb2.WorkerServiceGenerateRequest()
        changed.CopyFrom(got)
        changed.MergeFrom(other)
        with pytest.raises(LeaseError, match="was signed for another request"):
            checker.redeem(changed)
        checker.redeem(got)


async def test_how_a_model_is_sampled_by_itself_reaches_its_worker(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.5, "top_k": 7}))
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        await asked(r, to_message(Request("hi")))
        await asked(r, to_message(Request("hi", sampling=Sampling(temperature=0.0))))
        by_itself, greedy = (each.sampling for each in r.workers[0].received)
        assert by_itself == inference_pb2.SamplingParams(temperature=0.5, top_k=7)
        assert greedy == inference_pb2.SamplingParams(temperature=0.0)


async def answers(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """Everything that an answer may have."""
    place = inference_pb2.TokenLogprob(token_id=1, token=b"a", logprob=-0.5)
    yield inference_pb2.GenerateResponse(reasoning="hm", token_ids=[1], logprobs=[place], prompt_logprobs=[place])
    call = inference_pb2.ToolCallDelta(id="c", name="f", arguments="{}")
    yield inference_pb2.GenerateResponse(text="ok", token_ids=[2], logprobs=[place], tool_calls=[call])
    usage = inference_pb2.Usage(reasoning_tokens=1)
    finish = inference_pb2.FINISH_REASON_TOOL_CALLS
    report = inference_pb2.SparsityReport(tier=worker.tier, kernel_calls=1, prefill_density=1)
    yield inference_pb2.GenerateResponse(
        completion=inference_pb2.Completion(model="tiny", usage=usage, finish_reason=finish, sparsity=report)
    )


@pytest.mark.parametrize("hedged", [False, True])
async def test_an_answer_comes_back_whole(model: Path, hedged: bool) -> None:
    workers = [FakeWorker("d", DENSE, model, behaviour=answers)]
    if hedged:
        workers.insert(0, FakeWorker("slow", DENSE, model, behaviour=hang))
    admission = Admission(hedge_seconds=0.05 if hedged else 0.0)
    async with rig(model, *workers, admission=admission) as r:
        found = [response async for response in r.stub.Generate(to_message(WISHES))]
        assert "".join(each.reasoning for each in found) == "hm"
        assert [call.name for each in found for call in each.tool_calls] == ["f"]
        assert [len(each.logprobs) for each in found] == [1, 1, 0]
        assert len(found[0].prompt_logprobs) == 1
        assert found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_TOOL_CALLS
        assert (found[-1].completion.model, found[-1].completion.usage.reasoning_tokens) == ("tiny", 1)
