"""The one place where our errors become gRPC statuses, and statuses our errors."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sparsity.errors import (
    CancelledError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
    SparsityError,
    TokenCountError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)

_ERRORS: dict[grpc.StatusCode, type[SparsityError]] = {
    kind.code: kind
    for kind in (
        CancelledError,
        ConfigurationError,
        ConflictError,
        DeadlineError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        TokenCountError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
}

RETRY_DELAY_SECONDS = 1
# How gRPC begins where it found nobody to send to.
_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed")
# Of a message and of its details each: gRPC refuses 16 KiB of metadata, and may refuse 8.
_MOST_BYTES = 2048


def to_status(error: SparsityError) -> status_pb2.Status:
    """The rich status of an error: BadRequest for invalid fields, RetryInfo for overload."""
    status = status_pb2.Status(code=error.code.value[0], message=_cut(str(error)))
    if isinstance(error, InvalidRequestError):
        status.details.append(_packed(_bad_request(error)))
    if isinstance(error, OverloadedError):
        delay = Duration()
        seconds = error.retry_after if isinstance(error, RateLimitError) else RETRY_DELAY_SECONDS
        delay.FromNanoseconds(int(seconds * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    """The mistakes, as many as a status has room for."""
    bad = error_details_pb2.BadRequest()
    for number, (field, problem) in enumerate(error.violations):
        if bad.ByteSize() > _MOST_BYTES // 2:
            bad.field_violations.add(field="request", description=f"and {len(error.violations) - number} more mistakes")
            break
        bad.field_violations.add(field=_cut(field, _MOST_BYTES // 4), description=_cut(problem, _MOST_BYTES // 4))
    return bad


def _cut(text: str, most: int = _MOST_BYTES) -> str:
    """The text, or as much of it as fits into so many bytes."""
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= most else f"{data[: most - 3].decode('utf-8', 'ignore')}..."


def to_error(error: grpc.RpcError) -> SparsityError:
    """The error behind a failed call."""
    call: Any = error
    code, details = call.code(), call.details() or "no details"
    if code is not grpc.StatusCode.INVALID_ARGUMENT:
        return _ERRORS.get(code, EngineError)(details)
    violations = []
    metadata = dict(call.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    for packed in status.details:
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            violations += [Violation(found.field, found.description) for found in bad.field_violations]
    return InvalidRequestError(*violations or [Violation("request", details)])


def died(error: BaseException | None) -> bool:
    """Whether a worker was lost with the request, in place of refusing it (draining), or of never having had it."""
    call: Any = error
    if not isinstance(error, grpc.RpcError) or call.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    # What a worker says itself comes with a rich status; gRPC's own words are all there is of a lost connection.
    said = "grpc-status-details-bin" in dict(call.trailing_metadata() or ())
    return not said and not (call.details() or "").startswith(_NEVER_SENT)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


async def answer(context: grpc.aio.ServicerContext[Any, Any], error: SparsityError) -> NoReturn:
    """Ends the call with the status of ``error``."""
    status = rpc_status.to_status(to_status(error))
    # What the handler has told so far holds for a call that failed, too.
    told = tuple(context.trailing_metadata() or ())
    await context.abort(status.code, status.details, told + tuple(status.trailing_metadata))
