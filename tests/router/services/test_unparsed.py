"""What a serialized message holds is bounded before it is parsed: two bytes there may be a hundred in memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, policy_pb2, worker_pb2
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.status import to_error
from sparsity_serving.bounds import MAX_MESSAGES
from sparsity_serving.fields.unparsed import MAX_FIELDS, MAX_PARTS, too_much
from support.asked.serialized import empty_turns, varint, within
from support.loop_time import loop_is_free
from support.routers.rig import DENSE, refusal, rig
from support.routers.router import failure, running
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

REQUEST = inference_pb2.GenerateRequest.DESCRIPTOR
MIB = 2**20


HOSTILE = {
    "empty turns": empty_turns(6 * MIB),
    "empty tools": within(inference_pb2.GenerateRequest, "tools") * (6 * MIB),
    "turns behind a group": b"\x7b" + empty_turns(MIB),
    "tools behind a group that holds what no parser reads": (
        varint(1000 << 3 | 3)
        + within(inference_pb2.GenerateRequest, "tools", b"\x07")
        + varint(1000 << 3 | 4)
        + within(inference_pb2.GenerateRequest, "tools") * (6 * MIB)
    ),
    "long numbers under long names": (varint(2**29 - 1 << 3) + b"\xff" * 9 + b"\x01") * 1_100_000,
    "flags": within(
        inference_pb2.GenerateRequest,
        "context",
        within(inference_pb2.RequestContext, "flags") * (5 * MIB),
    ),
    "numbers that are not packed": within(inference_pb2.GenerateRequest, "token_ids", b"\x08\x00" * (5 * MIB)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_it_is_refused_and_takes_neither_memory_nor_time(tmp_path: Path, data: bytes) -> None:
    model = tiny_model(tmp_path)
    async with rig(model, FakeWorker("d", DENSE, model)) as at:
        call: Any = at.channel.unary_unary("/sparsity.v1.InferenceService/Generate", lambda sent: sent)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with loop_is_free(0.4):
            error: Any = to_error(await refusal(call(data)))
        assert isinstance(error, InvalidRequestError)
        assert error.field == "request"
        # Kilobytes; the bytes themselves lie there a few times.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
        assert (await at.generate("hi"))[0] == "abc"


def test_as_much_as_is_taken_is_parsed() -> None:
    largest = make_request("", domain="low")
    call = inference_pb2.ToolCall(id="c", name="f", arguments="{}")
    largest.chat.messages.extend([inference_pb2.ChatMessage(role="assistant", tool_calls=[call])] * MAX_MESSAGES)
    replayed = policy_pb2.SimulatePolicyRequest()
    for field in replayed.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.name == "Signals":
            signals = inference_pb2.Signals(domain="low", labels={f"l{n}": "v" for n in range(8)}, flags=["a"])
            getattr(replayed, field.name).extend([signals] * 10_000)
    ids = make_request([7] * 2**20)
    for message in (largest, ids, replayed, make_request("x" * 2**22)):
        assert too_much(message.SerializeToString(), message.DESCRIPTOR, 2**26) == "", message.DESCRIPTOR.name


def test_what_is_counted() -> None:
    assert too_much(empty_turns(MAX_PARTS - 1), REQUEST, 2**26) == ""
    assert too_much(empty_turns(MAX_PARTS), REQUEST, 2**26) == f"has more than {MAX_PARTS} messages in it"
    assert too_much(b"x" * 11, REQUEST, 10) == "has 11 bytes; 10 are the most"
    wrapped = within(inference_pb2.ExplainRequest, "request", empty_turns(MAX_PARTS))
    assert too_much(wrapped, inference_pb2.ExplainRequest.DESCRIPTOR, 2**26)
    # Of what it does not know a parser makes nothing, and what it cannot read it refuses.
    unknown = varint(5000 << 3 | 2) + varint(4 * MIB) + b"\x0a\x00" * (2 * MIB)
    assert too_much(unknown, REQUEST, 2**26) == ""
    assert too_much(b"\x00" * (2 * MIB), REQUEST, 2**26) == f"has more than {MAX_FIELDS} fields"
    for broken in (b"\xff" * MIB, b"\x07" * MIB, varint(5 << 3 | 2) + varint(2**40) + b"x" * 70_000):
        assert too_much(broken, REQUEST, 2**26) == ""
    assert too_much(b"", worker_pb2.DrainRequest.DESCRIPTOR, 0) == ""


async def test_a_router_takes_no_more_bytes_than_a_request_may_have(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    with Valkey() as server:
        async with running(RouterConfig(model, ("127.0.0.1:1",), server.url, "127.0.0.1:0")) as router:
            error = await failure(
                router.inference.Explain(inference_pb2.ExplainRequest(request=make_request("x" * (17 * MIB))))
            )
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "16778240 are the most" in error.details()
