"""What both clients share of the direct path: the worker's request out of a router's answer, and when to fall back."""

from __future__ import annotations

import time
from math import inf

from google.protobuf.message import DecodeError
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.channels import FELL_BACK, LOST
from sparsity_rpc.errors import (
    ConfigurationError,
    EngineError,
    OverloadedError,
    PermissionDeniedError,
    SparsityError,
    StreamBrokenError,
    TokenCountError,
    UnavailableError,
    UnimplementedError,
)
from sparsity_rpc.silence import Timeouts, was_silent
from sparsity_rpc.status import died

# Before the first message: the relay may know another worker, or the router has no leases to give.
_FALL_BACK = (
    UnavailableError,
    OverloadedError,
    PermissionDeniedError,
    ConfigurationError,
    TokenCountError,
    UnimplementedError,
)


def worker_request(route: inference_pb2.RouteResponse) -> worker_pb2.WorkerServiceGenerateRequest:
    """The request that the lease was signed for, lease included.

    Raises:
        EngineError: where the router's answer holds none.
    """
    request = worker_pb2.WorkerServiceGenerateRequest()
    try:
        request.MergeFromString(route.worker_request)
    except DecodeError as error:
        raise EngineError(f"the router sent a worker's request that cannot be read: {error}") from error
    request.lease.CopyFrom(route.lease)
    return request


def timeouts(route: inference_pb2.RouteResponse) -> Timeouts:
    """How long the worker may say nothing; a router that does not tell sets no bound."""
    told = ("first_message_timeout", "next_message_timeout")
    return Timeouts(*(getattr(route, name).ToNanoseconds() / 1e9 if route.HasField(name) else inf for name in told))  # type: ignore[arg-type]


def with_decision(
    response: inference_pb2.GenerateResponse, route: inference_pb2.RouteResponse
) -> inference_pb2.GenerateResponse:
    """A worker's message as the relay would have sent it."""
    if response.HasField("completion"):
        response.completion.decision.CopyFrom(route.decision)
    return response


def falls_back(error: SparsityError) -> bool:
    """Whether the relay may do what the direct path could not."""
    return isinstance(error, _FALL_BACK)


def fell_back(routed: list[str], error: SparsityError) -> tuple[tuple[str, str], ...]:
    """Tells the relay whose call it takes up, to count it once, and whether a worker died of it, or hung on it."""
    lost = ((LOST, "1"),) if routed and (died(error.__cause__) or was_silent(error)) else ()
    return (*((FELL_BACK, decision_id) for decision_id in routed), *lost)


def broken(error: SparsityError) -> SparsityError:
    """The error of a stream that ended after its first message, as the relay would tell it."""
    if isinstance(error, (*_FALL_BACK, EngineError)):
        return StreamBrokenError(f"the worker failed mid-stream: {error}; what was sent stands, ask again for the rest")
    return error


def remaining(deadline: float | None) -> float | None:
    """Seconds until ``deadline`` of the monotonic clock."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
