"""The body of an HTTP request: bounded before it is read, read in time, and JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NoReturn

from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.documents import crowded

from sparsity_router.gateway.exchange import Exchange
from sparsity_router.gateway.refusals import HttpError

_READ_SECONDS: Final = 60.0
_MOST_CONTAINERS: Final = 2**17
"""Objects and arrays of one body: each takes some 200 bytes, and may be written in three. A conversation of the most
turns, each of them a call and its answer in parts, has half of them."""


async def read_json(exchange: Exchange, most: int) -> dict[str, Any]:
    """Reads a request's body, a JSON object of ``most`` bytes at most.

    Raises:
        HttpError: when it is too long, does not come in time, or is no JSON by its header.
        InvalidRequestError: when it is no JSON object.
        CancelledError: when its caller went away.
    """
    headers = dict(exchange.headers)
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" or headers.get(b"content-encoding", b"identity").lower() != b"identity":
        problem = "send the body as `content-type: application/json`, without a content-encoding"
        raise HttpError(415, "unsupported_media_type", problem)
    # The server refuses lengths that are none.
    if int(headers.get(b"content-length", b"0")) > most:
        raise _too_long(most)
    data, more = bytearray(), True
    try:
        async with asyncio.timeout(_READ_SECONDS):
            while more:
                piece, more = await exchange.receive()
                data += piece
                if len(data) > most:
                    raise _too_long(most)
    except TimeoutError as error:
        problem = f"the body did not come whole within {_READ_SECONDS:g} s"
        raise HttpError(408, "request_timeout", problem, (("connection", "close"),)) from error
    return _parsed(bytes(data))


def _too_long(most: int) -> HttpError:
    problem = f"the body is longer than the {most} bytes that this router takes"
    return HttpError(413, "request_too_large", problem, (("connection", "close"),))


def _parsed(data: bytes) -> dict[str, Any]:
    if crowded((data,), _MOST_CONTAINERS):
        raise InvalidRequestError.of("body", f"has more than {_MOST_CONTAINERS} objects and arrays")
    try:
        document = json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise InvalidRequestError.of("body", "is nested too deeply") from error
    # A number of too many digits, too, and bytes that are no UTF-8.
    except ValueError as error:
        raise InvalidRequestError.of("body", f"is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequestError.of("body", "must be a JSON object")
    return document


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
