"""The body of an HTTP request: bounded before it is read, read in time, and JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NoReturn

from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.documents import Marks, crowded

from sparsity_router.gateway.exchange import Exchange
from sparsity_router.gateway.refusals import HttpError

_READ_SECONDS: Final = 60.0
_MOST_DIGITS: Final = 400
_MOST_CONTAINERS: Final = 2**17
"""Objects and arrays of one body: each takes some 200 bytes, and may be written in three. A conversation of the most
turns, each of them a call and its answer in parts, has half of them."""
_MOST_NAMES: Final = 2**18
"""Names of one body, of which that conversation has half: each that differs from all others takes a microsecond."""
_MOST_VALUES: Final = 2**19
"""Values of one body beside a prompt's token ids: Python reads them without a pause, which all threads wait for."""


async def read_body(exchange: Exchange, most: int) -> bytes:
    """Reads a request's body, of ``most`` bytes at most.

    Raises:
        HttpError: when it is too long, does not come in time, or is no JSON by its header.
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
    return bytes(data)


def _too_long(most: int) -> HttpError:
    problem = f"the body is longer than the {most} bytes that this router takes"
    return HttpError(413, "request_too_large", problem, (("connection", "close"),))


def parsed(data: bytes, most_ids: int = 2**20) -> dict[str, Any]:
    """The JSON object of a body.

    Args:
        data: the body.
        most_ids: token ids that a prompt may have.

    Raises:
        InvalidRequestError: when it is none, or there is more in it than a request has.
    """
    # Values first: what has few of them is soon looked through for the others.
    bounds = {
        Marks.VALUES: (_MOST_VALUES + most_ids, "values"),
        Marks.NAMES: (_MOST_NAMES, "names"),
        Marks.CONTAINERS: (_MOST_CONTAINERS, "objects and arrays"),
    }
    for marks, (most, words) in bounds.items():
        if crowded((data,), most, marks):
            raise InvalidRequestError.of("body", f"has more than {most} {words}")
    try:
        document = json.loads(data, parse_int=_whole, parse_constant=_no_number)
    except RecursionError as error:
        raise InvalidRequestError.of("body", "is nested too deeply") from error
    # A number of too many digits, too, and bytes that are no UTF-8.
    except ValueError as error:
        raise InvalidRequestError.of("body", f"is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequestError.of("body", "must be a JSON object")
    return document


def _whole(digits: str) -> int:
    # Longer ones take Python a while each, and none that is read has so many.
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"there is a number of {len(digits)} digits; {_MOST_DIGITS} are the most")
    return int(digits)


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
