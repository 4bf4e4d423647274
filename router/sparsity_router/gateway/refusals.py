"""Errors in OpenAI's form: an HTTP status, and an object `error` that says what field, what kind, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import grpc
from sparsity_rpc.errors import (
    CONTEXT_LENGTH,
    InvalidRequestError,
    OverloadedError,
    RateLimitError,
    SparsityError,
    StreamBrokenError,
)
from sparsity_rpc.status import MOST_VALUE, cut, told

Pairs = Iterable[tuple[str, str]]
FIELD: Final = "field"
"""Name in an error's metadata of the field that it is about, where it is not one of mistakes."""
_BY_CODE: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What OpenAI answers otherwise than by its gRPC status.
_BY_KIND: Final[dict[type[SparsityError], int]] = {RateLimitError: 429, StreamBrokenError: 502}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# By which programs that were written for OpenAI tell these.
_CODES: Final = {"RATE_LIMIT": "rate_limit_exceeded", "UNAUTHENTICATED": "invalid_api_key"}
_MISSING_MODEL: Final = "model_not_found"
_TOO_LONG: Final = "context_length_exceeded"


class Refusal(NamedTuple):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        error: the object `error`.
        headers: beside those of every answer.
    """

    status: int
    error: dict[str, Any]
    headers: tuple[tuple[str, str], ...] = ()


class HttpError(Exception):
    """What only HTTP knows: a path, a method, or a body that cannot be taken.

    Args:
        status: of HTTP.
        code: for programs.
        problem: for people.
        headers: of the answer.

    Attributes:
        refusal: the answer.
        counted: the gRPC status that it counts as.
    """

    def __init__(self, status: int, code: str, problem: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(problem)
        self.counted = grpc.StatusCode.NOT_FOUND if status == 404 else grpc.StatusCode.INVALID_ARGUMENT
        self.refusal = Refusal(status, _error(problem, status, code, None), headers)


def http_status(kind: type[SparsityError]) -> int:
    """The HTTP status of a kind of errors."""
    for one in kind.__mro__:
        if one in _BY_KIND:
            return _BY_KIND[one]
    return _BY_CODE[kind.code]


def refusal(error: SparsityError, trailers: Pairs = ()) -> Refusal:
    """How an error is answered, with what the call has told of its decision."""
    metadata = {**error.metadata, **told(trailers)}
    status, field = http_status(type(error)), metadata.pop(FIELD, None)
    code = _CODES.get(error.reason, error.reason.lower())
    if error.reason == "NOT_FOUND" and field == "model":
        code = _MISSING_MODEL
    elif CONTEXT_LENGTH in metadata:
        code = _TOO_LONG
    param = error.field if isinstance(error, InvalidRequestError) else field
    found = _error(str(error), status, code, param)
    found["sparsity"] = {"reason": error.reason, **{name: cut(value, MOST_VALUE) for name, value in metadata.items()}}
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadedError):
        found["sparsity"]["retryDelay"] = f"{error.retry_after:g}s"
        headers = (("retry-after", str(math.ceil(error.retry_after))),
                   ("retry-after-ms", str(math.ceil(error.retry_after * 1000))))  # fmt: skip
    if isinstance(error, StreamBrokenError):
        # OpenAI's clients would try it again by themselves, and it has cost workers already.
        headers = (("x-should-retry", "false"),)
    return Refusal(status, found, headers)


def _error(problem: str, status: int, code: str, param: str | None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 499 else "server_error")
    param = None if param is None else cut(param, MOST_VALUE)
    return {"message": cut(problem), "type": kind, "param": param, "code": code}
