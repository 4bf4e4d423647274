"""JSON that a caller sends inside of a field: read within bounds, refused by the field's name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from sparsity_rpc.errors import InvalidRequestError

MAX_DOCUMENT: Final = 65_536
"""Bytes of one document."""
MAX_DEPTH: Final = 32
"""Objects and arrays in one another."""


def read_object(field: str, text: str, most: int = MAX_DOCUMENT) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        field: that holds it.
        text: the document.
        most: bytes that it may have.

    Raises:
        InvalidRequestError: naming ``field``, where it is none, too long, too deep, or escapes what is no text.
    """
    check_size(field, text, most)
    try:
        document = _parsed(field, text)
    except ValueError as error:
        raise InvalidRequestError.of(field, f"is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequestError.of(field, f"must be a JSON object, not {_kind(document)}")
    return _checked(field, text, document)


def read_or_keep(field: str, text: str) -> dict[str, Any] | str:
    """Reads a JSON object that a model wrote; what is none is kept as it is, such as one that was cut off.

    Raises:
        InvalidRequestError: naming ``field``, where it is too long, too deep, or escapes what is no text.
    """
    check_size(field, text)
    try:
        document = _parsed(field, text)
    except ValueError:
        return text
    return _checked(field, text, document) if isinstance(document, dict) else text


def check_size(field: str, text: str, most: int = MAX_DOCUMENT) -> None:
    """Refuses a document of too many bytes.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    if (size := len(text.encode())) > most:
        raise InvalidRequestError.of(field, f"has {size} bytes; it must have {most} at most")


def _parsed(field: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise InvalidRequestError.of(field, f"must be nested {MAX_DEPTH} deep at most") from error


def _checked(field: str, text: str, document: dict[str, Any]) -> dict[str, Any]:
    check_depth(field, document)
    try:
        # Only an escape can name half of a surrogate pair.
        for each in texts(document) if "\\u" in text else ():
            each.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError.no_text(field, error) from error
    return document


def check_depth(field: str, document: Any) -> None:
    """Refuses a document whose objects and arrays lie too deep in one another, and numbers that JSON does not have.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            raise InvalidRequestError.of(field, "has a number that JSON does not have")
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise InvalidRequestError.of(field, f"must be nested {MAX_DEPTH} deep at most")


def texts(document: Any) -> Iterator[str]:
    """Every name and every value of a document as it reads without JSON's escapes."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each
        if isinstance(each, str):
            yield each
        elif isinstance(each, (dict, list)):
            waiting.extend(reversed(list(_inside(each))))
        elif each is not None and not isinstance(each, bool):
            yield str(each)


def _inside(each: Any) -> list[Any]:
    return list(each.values()) if isinstance(each, dict) else each if isinstance(each, list) else []


def _kind(document: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null", bool: "true or false"}.get(
        type(document), "a number"
    )


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
