"""Typed values in front of the stubs: nothing of the contract is lost, and failed calls raise what failed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import sparsity_client
from google.protobuf.message import Message as WireMessage
from google.rpc import error_details_pb2
from sparsity.v1 import inference_pb2
from sparsity_client import (
    Answer,
    AsyncClient,
    CalledTool,
    Client,
    Grammar,
    JsonObject,
    JsonSchema,
    Logprobs,
    Message,
    RawText,
    Regex,
    Request,
    Sampling,
    Tier,
    TokenAlternative,
    TokenIds,
    TokenLogprob,
    Tool,
    ToolCall,
)
from sparsity_client.wire.requests import to_message
from sparsity_client.wire.values import Gathered, explanation
from sparsity_rpc import errors, status
from sparsity_rpc.errors import SparsityError
from sparsity_serving.server import listen

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
DECISION = inference_pb2.Decision(tier=inference_pb2.TIER_DENSE, policy_tier=inference_pb2.TIER_DENSE)
ASKED = Request("hello", domain="rag")
# Fields that are values of another name, or of no use to a caller: the rollout's key is the decision's id.
ELSEWHERE = {
    "Signals": {"request_key"}, "Completion": set(), "RequestContext": set(),
    "GenerateRequest": {"text", "chat", "token_ids", "context"}, "GenerateResponse": {"completion"},
}  # fmt: skip


def filled(kind: type[WireMessage]) -> Any:
    """A message of which every field is set, each number to one of its own."""
    message: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["k"] = "v"
        elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
            getattr(message, field.name).FromMilliseconds(1000 * field.number + 500)
        elif field.message_type is not None:
            inner = filled(field.message_type._concrete_class)
            getattr(message, field.name).add().CopyFrom(inner) if field.is_repeated else getattr(
                message, field.name
            ).CopyFrom(inner)
        else:
            value: Any = {
                field.TYPE_STRING: field.name, field.TYPE_BOOL: True, field.TYPE_ENUM: 2, field.TYPE_BYTES: b"x"
            }.get(field.type, field.number)  # fmt: skip
            getattr(message, field.name).append(value) if field.is_repeated else setattr(message, field.name, value)
    return message


def unset(value: object, path: str = "") -> list[str]:
    """Fields of a value, and of those in it, that hold nothing."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return [each for field in fields for each in unset(getattr(value, field.name), f"{path}.{field.name}")]
    if isinstance(value, tuple) and value:
        return unset(value[0], f"{path}[0]")
    return [] if value not in (None, "", 0, (), {}) else [path]


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("Decision", "Decision"),
        ("Usage", "Usage"),
        ("SparsityReport", "SparsityReport"),
        ("LayerReport", "LayerReport"),
        ("Signals", "Signals"),
        ("DecisionStep", "Step"),
        ("ExplainResponse", "Explanation"),
        ("Completion", "Answer"),
        ("SamplingParams", "Sampling"),
        ("RequestContext", "Request"),
        ("GenerateRequest", "Request"),
        ("GenerateResponse", "Chunk"),
        ("ChatMessage", "Message"),
        ("Tool", "Tool"),
        ("ToolCall", "ToolCall"),
        ("ToolCallDelta", "ToolCallDelta"),
        ("TokenLogprob", "TokenLogprob"),
        ("TokenAlternative", "TokenAlternative"),
        ("LogprobOptions", "Logprobs"),
    ],
)
def test_a_value_has_every_field_of_its_message(message: str, value: str) -> None:
    wire = {field.name for field in getattr(inference_pb2, message).DESCRIPTOR.fields}
    ours = {field.name for field in dataclasses.fields(getattr(sparsity_client, value))}
    assert wire - ELSEWHERE.get(message, set()) <= ours


def test_an_answer_carries_all_that_the_messages_say() -> None:
    gathered = Gathered()
    assert gathered.add(inference_pb2.GenerateResponse(text="a", token_ids=[1])).text == "a"
    last = filled(inference_pb2.GenerateResponse)
    last.choice = 0
    assert gathered.add(last).token_ids == (2,)
    answer = gathered.answer()
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("atext", (1, 2), "LENGTH")
    assert unset(answer) == []
    assert answer.decision.tier is Tier.MODERATE
    assert answer.decision.reason == "LENGTH_BAND"
    assert (answer.usage.time_to_first_token, answer.usage.total_time) == (4.5, 5.5)
    assert (answer.reasoning, answer.model, answer.usage.reasoning_tokens) == ("reasoning", "model", 6)
    assert answer.tool_calls == (ToolCall("id", "name", "arguments"),)
    assert (answer.logprobs, answer.prompt_logprobs) == 2 * (
        (TokenLogprob(1, b"x", 3, (TokenAlternative(1, b"x", 3),)),),
    )
    assert answer.sparsity is not None
    assert answer.sparsity.layers[0].coverage == 3
    last.completion.ClearField("sparsity")
    gathered.add(last)
    assert gathered.answer().sparsity is None
    explained = explanation(filled(inference_pb2.ExplainResponse))
    assert unset(explained) == []
    assert explained.signals.domain_source == "DETECTED"
    empty = explanation(inference_pb2.ExplainResponse(decision=last.completion.decision))
    assert (empty.signals.max_tier, empty.signals.confidence, empty.signals.domain_source) == (None, None, "")


def test_parts_of_calls_are_joined_in_the_order_that_the_calls_began() -> None:
    gathered = Gathered()
    for index, call, name, arguments in (
        (0, "a", "f", ""),
        (0, "", "", '{"x"'),
        (1, "b", "g", "{"),
        (0, "", "", ":1}"),
        (1, "", "", "}"),
    ):
        part = inference_pb2.ToolCallDelta(index=index, id=call, name=name, arguments=arguments)
        gathered.add(inference_pb2.GenerateResponse(tool_calls=[part]))
    gathered.add(inference_pb2.GenerateResponse(completion=inference_pb2.Completion(decision=DECISION)))
    assert gathered.answer().tool_calls == (ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", "{}"))


def test_a_word_of_a_later_version_stands_for_itself() -> None:
    message = filled(inference_pb2.ExplainResponse)
    message.decision.reason = 99
    assert explanation(message).decision.reason == "99"


def test_a_request_says_all_that_a_message_can() -> None:
    sampling = Sampling(1, 0.5, 0.5, 3, ("s",), 6, True, 0.25, 0.125, Regex("a"), {5: -1.0}, 1.5, 0.75)
    turns = (Message("system", "be brief"), Message("user", "hi"))
    asked = Request(turns, "d", "t", ("f",), {"k": "v"}, "x", "s", Tier.MODERATE, True, sampling, 7, "id")
    made = to_message(asked)
    assert {field.name for field, _ in made.ListFields()} == {"chat", "context", "sampling", "priority", "request_id"}
    assert [(turn.role, turn.content) for turn in made.chat.messages] == [("system", "be brief"), ("user", "hi")]
    for part in (made.context, made.sampling):
        assert [field.name for field, _ in part.ListFields()] == [field.name for field in part.DESCRIPTOR.fields]
    assert made.context.max_tier == inference_pb2.TIER_MODERATE
    assert made.sampling == inference_pb2.SamplingParams(
        max_new_tokens=1, temperature=0.5, top_p=0.5, top_k=3, stop=["s"], seed=6, ignore_eos=True,
        frequency_penalty=0.25, presence_penalty=0.125, response_format=inference_pb2.ResponseFormat(regex="a"),
        logit_bias=[inference_pb2.LogitBias(token_id=5, bias=-1)], repetition_penalty=1.5, min_p=0.75,
    )  # fmt: skip
    bare = to_message(Request("hi"))
    assert [(turn.role, turn.content) for turn in bare.chat.messages] == [("user", "hi")]
    assert not bare.context.ListFields()
    assert not bare.sampling.ListFields()
    assert to_message(Request(RawText("hi"))).text == "hi"
    assert list(to_message(Request(TokenIds((1, 2)))).token_ids.ids) == [1, 2]


FORMATS: list[tuple[Any, inference_pb2.ResponseFormat]] = [
    (JsonSchema({"type": "object"}), inference_pb2.ResponseFormat(json_schema='{"type": "object"}')),
    (JsonSchema("{}"), inference_pb2.ResponseFormat(json_schema="{}")),
    (JsonObject(), inference_pb2.ResponseFormat(json_object=True)),
    (Regex("a+"), inference_pb2.ResponseFormat(regex="a+")),
    (Grammar('root ::= "a"'), inference_pb2.ResponseFormat(grammar='root ::= "a"')),
]


@pytest.mark.parametrize(("value", "message"), FORMATS)
def test_each_format_has_its_message(value: Any, message: inference_pb2.ResponseFormat) -> None:
    assert to_message(Request("hi", sampling=Sampling(response_format=value))).sampling.response_format == message


def test_a_chat_with_tools_says_all_of_it() -> None:
    turns = (Message("developer", "d"), Message("assistant", "", (ToolCall("c1", "f", "{}"),), reasoning="hm"),
             Message("tool", "42", tool_call_id="c1", name="f"))  # fmt: skip
    tool = Tool("f", "does", {"type": "object"}, strict=True)
    asked = Request(turns, model="m", tools=(tool, Tool("g")), tool_choice=CalledTool("f"), logprobs=Logprobs(3, True),
                    chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")  # fmt: skip
    made = to_message(asked)
    assert (made.model, made.reasoning_effort, made.logprobs.top, made.logprobs.prompt) == ("m", "low", 3, True)
    assert dict(made.chat_template_kwargs) == {"enable_thinking": False}
    first, second = made.tools
    assert first == inference_pb2.Tool(name="f", description="does", parameters='{"type": "object"}', strict=True)
    assert second == inference_pb2.Tool(name="g")
    assert made.tool_choice.name == "f"
    _, called, told = made.chat.messages
    assert (called.reasoning, list(called.tool_calls)) == (
        "hm",
        [inference_pb2.ToolCall(id="c1", name="f", arguments="{}")],
    )
    assert (told.tool_call_id, told.name) == ("c1", "f")
    assert to_message(Request("hi", tool_choice="required")).tool_choice.mode == inference_pb2.TOOL_CHOICE_MODE_REQUIRED


BAD_CHOICE: Any = "perhaps"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request("hi", model="\ud800"), "model"),
        (Request("hi", tools=(Tool("\ud800"),)), "tools"),
        (Request("hi", tool_choice=BAD_CHOICE), "tool_choice"),
        (Request("hi", chat_template_kwargs={"x": object()}), "chat_template_kwargs"),
        (Request("hi", logprobs=Logprobs(-1)), "logprobs"),
        (Request("hi", sampling=Sampling(logit_bias={-1: 1.0})), "sampling.logit_bias"),
        (Request("\ud800"), "prompt"),
        (Request(TokenIds((-1,))), "prompt"),
        (Request("hi", domain="\ud800"), "context"),
        (Request("hi", priority=2**40), "priority"),
        (Request("hi", request_id="\ud800"), "request_id"),
        (Request("hi", sampling=Sampling(max_new_tokens=-1)), "sampling.max_new_tokens"),
        (Request("hi", sampling=Sampling(top_k=-1)), "sampling.top_k"),
        (Request("hi", sampling=Sampling(seed=-1)), "sampling.seed"),
        (Request("hi", sampling=Sampling(stop=("\ud800",))), "sampling"),
    ],
)
def test_what_no_message_can_carry_is_refused_by_name(request_: Request, field: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        to_message(request_)
    assert caught.value.field == field


class Service:
    """A router that answers, or fails, as it is told."""

    def __init__(self) -> None:
        self.error: SparsityError | None = None
        self.asked: list[Any] = []
        self.cancelled = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        yield inference_pb2.GenerateResponse(text="Par", token_ids=[1, 2])
        if self.error is not None:
            raise self.error
        try:
            if request.context.domain == "endless":
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        decision = inference_pb2.Decision(tier=2, policy_tier=3, reason=2, explanation="by length", decision_id="d1")
        completion = inference_pb2.Completion(decision=decision, finish_reason=1, worker_id="w", unreported="an echo")
        yield inference_pb2.GenerateResponse(text="is", token_ids=[3], completion=completion)

    async def Explain(self, request: Any, context: Any) -> Any:
        self.asked.append(request.request)
        if self.error is not None:
            raise self.error
        signals = inference_pb2.Signals(min_tokens=3, max_tokens=3, domain="rag", domain_source=1)
        decision = inference_pb2.Decision(tier=2, policy_tier=2, reason=2)
        return inference_pb2.ExplainResponse(signals=signals, decision=decision, alternatives=["in domain x: dense"])

    async def ReportOutcome(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return inference_pb2.ReportOutcomeResponse()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Service, str]]:
    service = Service()
    endpoint = listen("127.0.0.1:0", {SERVICE: service}, 2**20)
    await endpoint.server.start()
    try:
        yield service, f"127.0.0.1:{endpoint.port}"
    finally:
        await endpoint.server.stop(None)


def told(answer: Answer) -> tuple[Any, ...]:
    return (answer.text, answer.token_ids, answer.finish_reason, answer.decision.tier, answer.unreported)


WHOLE = ("Paris", (1, 2, 3), "STOP", Tier.MODERATE, "an echo")


async def test_both_clients_answer_stream_explain_and_report() -> None:
    async with serving() as (service, address):

        def blocking() -> None:
            with Client(address) as client:
                assert told(client.generate(ASKED, 10.0)) == WHOLE
                with client.stream(ASKED) as stream:
                    assert next(stream).text == "Par"
                    assert told(stream.answer()) == WHOLE
                    assert list(stream) == []
                assert client.explain(ASKED).alternatives == ("in domain x: dense",)
                client.report_outcome("d1", 0.5, "exact_match", {"k": "v"})

        await asyncio.to_thread(blocking)
        first = list(service.asked)
        service.asked.clear()
        async with AsyncClient(address) as client:
            assert told(await client.generate(ASKED, 10.0)) == WHOLE
            async with client.stream(ASKED) as stream:
                assert [chunk.text async for chunk in stream] == ["Par", "is"]
                assert told(await stream.answer()) == WHOLE
            assert (await client.explain(ASKED)).signals.domain_source == "DECLARED"
            await client.report_outcome("d1", 0.5, "exact_match", {"k": "v"})
        assert service.asked == first
        assert first[0] == to_message(ASKED)


async def test_leaving_a_stream_early_cancels_it_and_leaves_no_answer() -> None:
    endless = Request("hi", domain="endless")
    async with serving() as (service, address):
        async with AsyncClient(address) as client:
            async with client.stream(endless) as stream:
                assert (await anext(stream)).text == "Par"
            await asyncio.wait_for(service.cancelled.wait(), 5)
            with pytest.raises(errors.StreamBrokenError):
                await stream.answer()
        service.cancelled.clear()

        def blocking() -> None:
            with Client(address) as client:
                with client.stream(endless) as stream:
                    assert next(stream).text == "Par"
                with pytest.raises(errors.StreamBrokenError):
                    stream.answer()

        await asyncio.to_thread(blocking)
        await asyncio.wait_for(service.cancelled.wait(), 5)


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SparsityError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not SparsityError])
async def test_what_is_raised_there_is_raised_here(kind: type[SparsityError]) -> None:
    invalid = issubclass(kind, errors.InvalidRequestError)
    async with serving() as (service, address), AsyncClient(address) as client:
        service.error = kind(errors.Violation("context.domain", "is wrong")) if invalid else kind("as told")
        if isinstance(service.error, errors.OverloadedError):
            service.error.retry_after = 2.5
        for call in (client.generate(ASKED), client.explain(ASKED)):
            with pytest.raises(SparsityError) as caught:
                await call
            error = caught.value
            assert type(error) is kind
            assert (error.code, error.reason, str(error)) == (kind.code, kind.reason, str(service.error))
            if isinstance(error, errors.InvalidRequestError):
                assert (error.field, error.violations[0].problem) == ("context.domain", "is wrong")
            if isinstance(error, errors.OverloadedError):
                assert error.retry_after == 2.5


def test_reasons_are_told_apart_and_stand_for_their_kinds() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS)
    assert errors.StreamBrokenError.reason == "STREAM_BROKEN"


class Failed(grpc.RpcError):
    """A call that failed with metadata of anybody's."""

    def __init__(self, code: grpc.StatusCode, details: bytes = b"") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "as told"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._details),) if self._details else ()


def test_without_a_kind_of_ours_the_status_decides() -> None:
    assert type(status.to_error(Failed(grpc.StatusCode.UNAVAILABLE))) is errors.UnavailableError
    assert type(status.to_error(Failed(grpc.StatusCode.ABORTED))) is errors.ConflictError
    assert type(status.to_error(Failed(grpc.StatusCode.UNKNOWN))) is errors.EngineError
    assert type(status.to_error(Failed(grpc.StatusCode.NOT_FOUND, b"\xff\xff"))) is errors.NotFoundError
    invalid = status.to_error(Failed(grpc.StatusCode.INVALID_ARGUMENT))
    assert isinstance(invalid, errors.InvalidRequestError)
    assert str(invalid) == "request: as told"
    for reason, domain, code in (
        ("CONFLICT", "elsewhere", grpc.StatusCode.UNAVAILABLE),
        ("CONFLICT", "sparsity", grpc.StatusCode.UNAVAILABLE),
        ("A_LATER_KIND", "sparsity", grpc.StatusCode.UNAVAILABLE),
    ):
        packed = status.to_status(errors.UnavailableError("x"))
        packed.details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
        assert type(status.to_error(Failed(code, packed.SerializeToString()))) is errors.UnavailableError
