"""How much of each thing one call may bring; the contract's comments say the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sparsity_rpc.errors import InvalidRequestError

MAX_NAME: Final = 256
"""Characters of a name, an id, a flag, or a label's key or value."""
MAX_FLAGS: Final = 64
MAX_LABELS: Final = 64
MAX_REASON: Final = 4096
"""Characters of what people write down beside a change."""
MAX_OVERRIDES: Final = 256
"""In force at once: every decision looks at all of them."""
MAX_ALSO: Final = 16
"""Domains that have a say in a decision beside its own: each is evaluated."""
MAX_PRIORITY: Final = 9
MAX_MESSAGES: Final = 10_000
"""Turns of a conversation."""


def check_name(field: str, text: str, most: int = MAX_NAME) -> None:
    """Refuses a text that is too long.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    if len(text) > most:
        raise InvalidRequestError.of(field, f"has {len(text)} characters; it must have {most} at most")


def seconds_of(field: str, message: Duration | Timestamp) -> float:
    """The seconds of a duration, or since the epoch of a time.

    Raises:
        InvalidRequestError: naming ``field``, where it is none.
    """
    try:
        return message.ToNanoseconds() / 1e9
    except ValueError as error:
        raise InvalidRequestError.of(field, f"is no {type(message).__name__.lower()}: {error}") from error


def page_size(asked: int, most: int) -> int:
    """Entries of one page of a list: as many as are asked for, where that is a number up to ``most``, else ``most``."""
    return asked if 0 < asked <= most else most


def check_flags(field: str, flags: Collection[str]) -> None:
    """Refuses flags that are too many or too long.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    if len(flags) > MAX_FLAGS or any(len(flag) > MAX_NAME for flag in flags):
        raise InvalidRequestError.of(field, f"must be {MAX_FLAGS} at most, of {MAX_NAME} characters each at most")


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    """Refuses labels that are too many or too long.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    if len(labels) > MAX_LABELS or any(len(text) > MAX_NAME for pair in labels.items() for text in pair):
        problem = f"must be {MAX_LABELS} at most, with keys and values of {MAX_NAME} characters each at most"
        raise InvalidRequestError.of(field, problem)
