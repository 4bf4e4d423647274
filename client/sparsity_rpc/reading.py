"""A peer's message that cannot be parsed, in whose place `grpc.aio` gives None; blocking calls end INTERNAL."""

from __future__ import annotations

from typing import TypeVar

import grpc
from grpc.aio import Metadata

T = TypeVar("T")


def readable(message: T | None) -> T:
    """The message of an asynchronous call.

    Raises:
        grpc.aio.AioRpcError: INTERNAL, where it could not be read.
    """
    if message is None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), "sent what cannot be read")
    return message
