"""Every kind of error at both ends of a call, with what programs read of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sparsity.v1 import inference_pb2, inference_pb2_grpc
from sparsity_rpc import errors
from sparsity_rpc.channels import DECISION_ID, TIER
from sparsity_rpc.status import to_error
from sparsity_serving.server import listen

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]


def kinds(base: type[errors.SparsityError] = errors.SparsityError) -> Iterator[type[errors.SparsityError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


KINDS = list(kinds())


def made(kind: type[errors.SparsityError]) -> errors.SparsityError:
    if issubclass(kind, errors.InvalidRequestError):
        return kind.of("context.domain", "is wrong")
    return kind("told", 1.5) if issubclass(kind, errors.OverloadedError) else kind("told")


class Refusing:
    """Refuses every call as it is told to, with a decision in its trailers."""

    def __init__(self) -> None:
        self.error: errors.SparsityError = errors.EngineError("none")

    async def Explain(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata(((DECISION_ID, "d-1"), (TIER, "dense")))
        raise self.error


@pytest.fixture
async def refusing() -> AsyncIterator[tuple[Refusing, Any]]:
    service = Refusing()
    endpoint = listen("127.0.0.1:0", {SERVICE: service}, 2**20)
    await endpoint.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.port}") as channel:
        yield service, inference_pb2_grpc.InferenceServiceStub(channel)
    await endpoint.server.stop(None)


async def refused(stub: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Explain(inference_pb2.ExplainRequest())
    return caught.value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.reason)
async def test_a_kind_comes_through_a_call_whole(kind: type[errors.SparsityError], refusing: Any) -> None:
    service, stub = refusing
    service.error = made(kind).about({"limit": "10 requests per second"})
    call = await refused(stub)
    error = to_error(call)
    assert type(error) is kind
    assert error.metadata == {"limit": "10 requests per second", "decisionId": "d-1", "tier": "dense"}
    trailers = dict(call.trailing_metadata())
    assert (trailers[DECISION_ID], trailers[TIER]) == ("d-1", "dense")
    if isinstance(error, errors.OverloadedError):
        assert error.retry_after == 1.5


async def test_what_programs_read_of_it(refusing: Any) -> None:
    service, stub = refusing
    service.error = errors.RateLimitError("none left", 1.5).about({"limit": "x" * 5000})
    status = rpc_status.from_call(await refused(stub))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(info) or detail.Unpack(retry) for detail in status.details] == [True, True]
    assert (info.domain, info.reason) == ("sparsity", "RATE_LIMIT")
    assert info.metadata.keys() == {"limit", "retryDelay", "decisionId", "tier"}
    assert info.metadata["retryDelay"] == "1.500s"
    assert len(info.metadata["limit"]) < 1000, "metadata of a call has room for little"
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_reasons_are_told_apart() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS)
