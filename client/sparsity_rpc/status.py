"""The one place where our errors become gRPC statuses, and statuses our errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import Metadata

from sparsity_rpc.channels import DECISION_ID, TIER
from sparsity_rpc.errors import (
    EngineError,
    EngineLostError,
    InvalidRequestError,
    OverloadedError,
    SparsityError,
    Violation,
)

# Whose reasons they are (AIP-193).
_DOMAIN: Final = "sparsity"
_RETRY_DELAY: Final = "retryDelay"
# What a call tells in its trailers, by its name in an error's metadata.
_TOLD: Final = {DECISION_ID: "decisionId", TIER: "tier"}
_DETAILS: Final = "grpc-status-details-bin"
# Where a worker's request has what a caller's has at its top.
_CHAT: Final = "chat."
_IN_CHAT: Final = ("chat.tools", "chat.tool_choice")
# How gRPC begins where it found nobody to send to.
_NEVER_SENT: Final = ("failed to connect to all addresses", "DNS resolution failed")
# Of a message and of its details each: gRPC refuses 16 KiB of metadata, and may refuse 8.
_MOST_BYTES: Final = 2048
MOST_VALUE: Final = _MOST_BYTES // 8
"""Bytes of a value in an error's metadata."""


def _kinds(base: type[SparsityError]) -> Iterator[type[SparsityError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


_BY_REASON: dict[str, type[SparsityError]] = {kind.reason: kind for kind in _kinds(SparsityError)}
# For what answers without a reason, such as a proxy: the first kind of a status in the tree is its most general.
_BY_CODE: dict[grpc.StatusCode, type[SparsityError]] = {}
for _kind in SparsityError.__subclasses__():
    _BY_CODE.setdefault(_kind.code, _kind)


def to_status(error: SparsityError) -> status_pb2.Status:
    """The rich status of an error: its kind and metadata, BadRequest for invalid fields, RetryInfo for overload."""
    status = status_pb2.Status(code=error.code.value[0], message=cut(str(error)))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN)
    if isinstance(error, InvalidRequestError):
        status.details.append(_packed(_bad_request(error)))
    if isinstance(error, OverloadedError):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        info.metadata[_RETRY_DELAY] = delay.ToJsonString()
    for name, value in error.metadata.items():
        info.metadata[name] = cut(value, MOST_VALUE)
    status.details.append(_packed(info))
    return status


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    """The mistakes, as many as a status has room for."""
    bad = error_details_pb2.BadRequest()
    for number, (field, problem) in enumerate(error.violations):
        if bad.ByteSize() > _MOST_BYTES // 2:
            bad.field_violations.add(field="request", description=f"and {len(error.violations) - number} more mistakes")
            break
        bad.field_violations.add(field=cut(field, _MOST_BYTES // 4), description=cut(problem, _MOST_BYTES // 4))
    return bad


def cut(text: str, most: int = _MOST_BYTES) -> str:
    """The text, or as much of it as fits into so many bytes; half of a surrogate pair is written out."""
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= most else f"{data[: most - 3].decode('utf-8', 'ignore')}..."


def to_error(error: grpc.RpcError) -> SparsityError:
    """The error behind a failed call: of the kind that was raised there, or by its status where it tells no kind."""
    call: Any = error
    code, problem = call.code(), call.details() or "no details"
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for packed in _details(call):
        for detail in (info, bad, retry):
            packed.Unpack(detail)
    kind = _BY_REASON.get(info.reason) if info.domain == _DOMAIN else None
    kind = kind if kind is not None and kind.code is code else _BY_CODE.get(code, EngineError)
    metadata = {name: value for name, value in info.metadata.items() if name != _RETRY_DELAY}
    return _made(kind, problem, bad, retry).about(metadata if info.domain == _DOMAIN else {})


def from_worker(error: grpc.RpcError) -> SparsityError:
    """As :func:`to_error`, of a worker's call: its request has fields of the caller's in another place."""
    found = to_error(error)
    if not isinstance(found, InvalidRequestError):
        return found
    named = [Violation(_of_caller(each.field), each.problem) for each in found.violations]
    return type(found)(*named).about(found.metadata)


def _of_caller(field: str) -> str:
    return field.removeprefix(_CHAT) if field.startswith(_IN_CHAT) else field


def _made(
    kind: type[SparsityError], problem: str, bad: error_details_pb2.BadRequest, retry: error_details_pb2.RetryInfo
) -> SparsityError:
    """An error of a kind, with what only that kind has."""
    if issubclass(kind, InvalidRequestError):
        violations = [Violation(found.field, found.description) for found in bad.field_violations]
        return kind(*violations or [Violation("request", problem)])
    if issubclass(kind, OverloadedError) and retry.HasField("retry_delay"):
        return kind(problem, retry.retry_delay.ToNanoseconds() / 1e9)
    return kind(problem)


def as_call_error(error: SparsityError) -> grpc.aio.AioRpcError:
    """What a call fails with whose server ends it with ``error``, of a peer that speaks another contract."""
    status = to_status(error)
    trailers = Metadata((_DETAILS, status.SerializeToString()))
    return grpc.aio.AioRpcError(error.code, Metadata(), trailers, status.message)


def told(trailers: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """What a call has told of its decision so far, as metadata of the error that ends it."""
    return {_TOLD[name]: str(value) for name, value in trailers if name in _TOLD}


def died(error: BaseException | None) -> bool:
    """Whether a worker was lost with the request, in place of refusing it (draining), or of never having had it."""
    call: Any = error
    if not isinstance(error, grpc.RpcError) or call.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    if isinstance(to_error(error), EngineLostError):
        return True
    # What a worker says itself comes with a rich status; gRPC's own words are all there is of a lost connection.
    said = _DETAILS in dict(call.trailing_metadata() or ())
    return not said and not (call.details() or "").startswith(_NEVER_SENT)


def _details(call: Any) -> Sequence[any_pb2.Any]:
    packed = dict(call.trailing_metadata() or ()).get(_DETAILS, b"")
    try:
        details: Sequence[any_pb2.Any] = status_pb2.Status.FromString(packed).details
    except DecodeError:
        return ()
    return details


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


async def answer(context: grpc.aio.ServicerContext[Any, Any], error: SparsityError) -> NoReturn:
    """Ends the call with the status of ``error``."""
    # What the handler has told so far holds for a call that failed, too.
    trailers = tuple(context.trailing_metadata() or ())
    status = to_status(error.about(told(trailers)))
    await context.abort(error.code, status.message, (*trailers, (_DETAILS, status.SerializeToString())))
