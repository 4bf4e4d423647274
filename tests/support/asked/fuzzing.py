"""Calls that nobody should make: messages with fields at their edges, bytes that are none, streams used in odd ways."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sparsity.v1 import inference_pb2, policy_pb2, worker_pb2
from sparsity_client.wire import make_request

# Lengths at their bounds, forms of one letter, text that runs from right to left, what a store or a shell reads.
TEXTS = ("", "hi", "rag", "code", "x" * 256, "x" * 257, "\u00e9" * 300, "e\u0301", "\0", "<|end|>", "1-1", "a" * 20_000,
         "2020-01-01", "\u202egar", "\ufeffrag", "\U0001d597\U0001d586", "\ufb01", "\U0001f600" * 64, "{sparsity}", "*",
         "../rag", " ", "\r\n", "-inf", "\u200b", "RAG", "%s%n", "$(id)",
         "\x7f\x1b[2J", "\ud7ff\ue000\uffff", "\u00b2", "9" * 5000, "\u0663-\u0663")  # fmt: skip
_KINDS = FieldDescriptor
_WHOLE = {
    _KINDS.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _KINDS.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _KINDS.CPPTYPE_UINT32: (0, 2**32 - 1),
    _KINDS.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NUMBERS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
# The echo's vocabulary has 260 tokens, its context 131,072.
_COUNTS = (1, 2, 9, 100, 255, 256, 259, 260, 131_071, 131_072)


def _scalar(field: FieldDescriptor, chance: random.Random) -> Any:
    if field.cpp_type in _WHOLE:
        low, high = _WHOLE[field.cpp_type]
        return chance.choice((max(low, 0), *_COUNTS, low, high, chance.randint(low, high)))
    if field.cpp_type == _KINDS.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type == _KINDS.CPPTYPE_ENUM:
        return chance.choice((*(value.number for value in field.enum_type.values), 99))
    if field.cpp_type == _KINDS.CPPTYPE_STRING:
        text = chance.choice(TEXTS)
        return text.encode() if field.type == _KINDS.TYPE_BYTES else text
    return chance.choice(_NUMBERS)


def made(kind: Descriptor, chance: random.Random, depth: int = 0) -> Message:
    """A message whose fields are each at an edge, or not there."""
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if chance.random() < (0.25 if depth < 5 else 1.0):
            continue
        if field.message_type is None:
            values = [_scalar(field, chance) for _ in range(chance.choice((1, 2, 70)) if field.is_repeated else 1)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        elif field.message_type.GetOptions().map_entry:
            entries, value = getattr(message, field.name), field.message_type.fields_by_name["value"].message_type
            for _ in range(chance.choice((1, 3, 70)) if value is None else 2):
                key = chance.choice(TEXTS) + str(chance.random())
                if value is None:
                    entries[key] = chance.choice(TEXTS)
                else:
                    entries[key].CopyFrom(made(value, chance, depth + 1))
        elif field.is_repeated:
            getattr(message, field.name).extend(
                made(field.message_type, chance, depth + 1) for _ in range(chance.randrange(4))
            )
        else:
            getattr(message, field.name).CopyFrom(made(field.message_type, chance, depth + 1))
    return message


def changed(base: Any, chance: random.Random) -> Any:
    """A good message with one field in another's place, however deep it lies."""
    message: Any = type(base)()
    message.CopyFrom(base)
    at, other = message, made(base.DESCRIPTOR, chance)
    while True:
        field = chance.choice(at.DESCRIPTOR.fields)
        single = field.message_type is not None and not field.is_repeated and at.HasField(field.name)
        if single and other.HasField(field.name) and chance.random() < 0.8:
            at, other = getattr(at, field.name), getattr(other, field.name)
            continue
        at.ClearField(field.name)
        only = type(at)()
        only.CopyFrom(other)
        for known, _ in other.ListFields():
            if known is not field:
                only.ClearField(known.name)
        at.MergeFrom(only)
        return message


def good(policy: Any) -> dict[str, Any]:
    """A request of each method that is taken, by the method's full name; ``policy`` is a stored one."""
    request = make_request("hi", domain="rag", labels={"a": "b"}, tenant="t", session="s", max_new_tokens=4)
    signals = inference_pb2.Signals(min_tokens=9, max_tokens=9, domain="rag", labels={"a": "b"})
    override = policy_pb2.Override(scope=policy_pb2.OVERRIDE_SCOPE_TENANT, target="none", reason="fuzz")
    direct = worker_pb2.WorkerServiceGenerateRequest(request_id="r", sampling={"max_new_tokens": 4})
    direct.prompt.ids.extend(b"hello")
    found: dict[str, Any] = {
        "InferenceService.Generate": request,
        "InferenceService.Route": inference_pb2.RouteRequest(request=request),
        "InferenceService.Explain": inference_pb2.ExplainRequest(request=request),
        "InferenceService.ReportOutcome": inference_pb2.ReportOutcomeRequest(decision_id="x", score=1.0, metric="m"),
        "PolicyService.PutPolicy": policy_pb2.PutPolicyRequest(policy=policy, reason="fuzz", validate_only=True),
        "PolicyService.SimulatePolicy": policy_pb2.SimulatePolicyRequest(policy=policy, signals=[signals]),
        "PolicyService.PutOverride": policy_pb2.PutOverrideRequest(override=override),
        "PolicyService.UpdateRollout": policy_pb2.UpdateRolloutRequest(
            domain="rag", action=1, rollout={"steps": [5, 100]}
        ),
        "WorkerService.Generate": direct,
    }
    return {f"sparsity.v1.{name}": message for name, message in found.items()}


def message_for(method: MethodDescriptor, base: Any, chance: random.Random) -> bytes:
    """A request of ``method``: like ``base`` but for a field, made up altogether, or no protobuf at all."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(40))
    if base is None or chance.random() < 0.3:
        return made(method.input_type, chance).SerializeToString()
    return bytes(changed(base, chance).SerializeToString())


def metadata(chance: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    """None mostly; else what proxies, tracers and clients send, made wrong."""
    if chance.random() < 0.8:
        return ()
    return (
        chance.choice(
            (
                ("authorization", chance.choice(("Bearer ", "Bearer x.y.z", "Basic eA==", "x" * 4000))),
                ("traceparent", chance.choice(("00-0-0-0", "ff" * 40, f"00-{'1' * 32}-{'2' * 16}-01", "-"))),
                ("tracestate", ",".join(f"k{number}=v" for number in range(chance.choice((1, 200))))),
                ("baggage", "a=b;" * chance.choice((1, 900))),
                ("sparsity-fell-back", chance.choice(("", "x", "0" * 32, "x" * 3000))),
                ("some-bin", chance.randbytes(chance.choice((0, 1, 5000)))),
                ("grpc-previous-rpc-attempts", chance.choice(("-1", "9" * 30))),
            )
        ),
    ) * chance.choice((1, 1, 2, 40))


class Target(NamedTuple):
    """A method of one server."""

    channel: grpc.aio.Channel
    method: MethodDescriptor

    @property
    def path(self) -> str:
        """As it stands on the wire."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


WAYS = ("whole",) * 6 + ("left",) * 2 + ("no message", "stays open", "two messages", "storm")
_STORM = 24


async def _messages(request: bytes, way: str) -> AsyncIterator[bytes]:
    if way != "no message":
        yield request
    if way == "two messages":
        yield request[::-1]
    if way == "stays open":
        await asyncio.sleep(60.0)


async def call(target: Target, request: bytes, way: str, chance: random.Random) -> list[grpc.StatusCode | str]:
    """Makes a call in one of :data:`WAYS`, and says how it ended; a storm makes many.

    A stream that is left has no status: `left`.
    """
    extra, seconds = metadata(chance), chance.choice((5.0, 5.0, 5.0, 0.5, 0.01, 1e-6))
    if way == "storm":
        calls = [target.channel.unary_stream(target.path)(request, timeout=seconds) for _ in range(_STORM)]
        await asyncio.sleep(chance.choice((0.0, 0.001, 0.01)))
        for begun in calls:
            begun.cancel()
        return ["left"] * _STORM
    if target.method.name.startswith("Watch"):
        way = "left" if way in ("whole", "stays open") else way
    if way in ("whole", "left"):
        stream: Any = target.channel.unary_stream(target.path)(request, timeout=seconds, metadata=extra)
    else:
        messages = _messages(request, way)
        stream = target.channel.stream_stream(target.path)(messages, timeout=seconds, metadata=extra)
    try:
        if way == "left":
            await asyncio.wait_for(stream.read(), chance.choice((0.0, 0.001, 0.02, 0.2)))
            return ["left"]
        async for _ in stream:
            pass
        return [grpc.StatusCode.OK]
    except (TimeoutError, asyncio.CancelledError, asyncio.InvalidStateError):
        return ["left"]
    except grpc.aio.AioRpcError as error:
        # Who is refused at once is written to in vain: the client's own words, and no answer.
        return ["left"] if str(error.details()).startswith("Internal error from Core") else [error.code()]
    finally:
        stream.cancel()


def methods_of(service: Any, *left_out: str) -> Iterator[MethodDescriptor]:
    """The methods of a service, but those."""
    return (method for method in service.methods if method.name not in left_out)
