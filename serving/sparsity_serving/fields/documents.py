"""JSON that a caller sends inside of a field: read within bounds, refused by the field's name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from functools import cached_property
from itertools import chain, islice
from typing import Any, Final, NoReturn

from sparsity_rpc.errors import InvalidRequestError

MAX_DOCUMENT: Final = 65_536
"""Bytes of one document."""
MAX_DEPTH: Final = 32
"""Objects and arrays in one another."""
MAX_TOGETHER: Final = 2**20
"""Bytes of the parameters of all tools and the arguments of all calls of a request."""
MAX_CONTAINERS: Final = 2**15
"""Objects and arrays in them: each is one more for Python's garbage collector to go through, which all wait for."""

MAX_COUNTED: Final = 128
"""Properties of the objects of a request's schemas whose properties are counted: engines have a rule for each pair."""
_DATA: Final = frozenset(("default", "enum", "const", "examples"))
# Whose names are no keywords.
_NAMED: Final = frozenset(
    ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
)
# Engines follow any other wherever it leads, into data too.
_PLAIN_REFERENCE: Final = re.compile(r"#|#/(\$defs|definitions)/[^/]+")


class Marks(Enum):
    """What there may be too much of in JSON, by the bytes that each begins with, or is told by."""

    CONTAINERS = b"{["
    NAMES = b":"
    VALUES = b","

    @cached_property
    def next(self) -> re.Pattern[bytes]:
        """Up to the next one outside of texts, or to the end; whatever the bytes are, none is looked at twice."""
        own = re.escape(self.value)
        return re.compile(rb'(?:[^"%b]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))*+(?:([%b])|\Z)' % (own, own), re.DOTALL)


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


def check_together(field: str, documents: Iterable[str]) -> None:
    """Refuses parameters and arguments that have too much together, before any of them is read.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    written = [each.encode() for each in documents]
    if (size := sum(map(len, written))) > MAX_TOGETHER:
        problem = f"have parameters and arguments of {size} bytes together; there may be {MAX_TOGETHER}"
        raise InvalidRequestError.of(field, problem)
    if crowded(written, MAX_CONTAINERS):
        problem = f"have parameters and arguments of more than {MAX_CONTAINERS} objects and arrays together"
        raise InvalidRequestError.of(field, problem)


def crowded(documents: Collection[bytes], most: int, marks: Marks = Marks.CONTAINERS) -> bool:
    """Whether documents have more than ``most`` objects and arrays together, or other marks, not counting texts'."""
    # Those of texts are told apart only where there are so many that it matters.
    if sum(data.count(byte) for data in documents for byte in marks.value) <= most:
        return False
    found = chain.from_iterable(map(marks.next.finditer, documents))
    # The end of each document is found, too.
    return sum(1 for _ in islice((each for each in found if each[1]), most + 1)) > most


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
    for _ in range(MAX_DEPTH):
        inside = [inner for each in level for inner in (each.values() if type(each) is dict else each)]
        if not all(map(math.isfinite, (each for each in inside if type(each) is float))):
            raise InvalidRequestError.of(field, "has a number that JSON does not have")
        level = [each for each in inside if each and type(each) in (dict, list)]
        if not level:
            return
    raise InvalidRequestError.of(field, f"must be nested {MAX_DEPTH} deep at most")


def check_counts(field: str, schema: Any, others: int = 0) -> int:
    """Refuses a JSON schema that counts the properties of too many: some kilobytes of it take engines gigabytes.

    Args:
        field: that holds it.
        schema: as it was read.
        others: pairs of counted properties in schemas that are held to beside it.

    Returns:
        The pairs with its own.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    pairs, waiting = others, [(schema, False)]
    # What is no schema counts nothing, but where a reference makes one of it.
    data = _DATA if all(map(_PLAIN_REFERENCE.fullmatch, _references(schema))) else ()
    while waiting:
        each, named = waiting.pop()
        if isinstance(each, dict):
            properties = each.get("properties")
            pairs += len(properties) ** 2 if isinstance(properties, dict) and _counts(each) else 0
            inner = ((name, value) for name, value in each.items() if named or name not in data)
            waiting.extend((value, not named and name in _NAMED) for name, value in inner)
        elif isinstance(each, list):
            waiting.extend((inner, False) for inner in each)
    if pairs > MAX_COUNTED**2:
        most = f"one object may have {MAX_COUNTED}, and several of a request no more together, by their squares"
        problem = f"counts too many properties by minProperties or maxProperties: {most}"
        raise InvalidRequestError.of(field, problem)
    return pairs


def _counts(schema: dict[str, Any]) -> bool:
    """Whether a schema counts properties; what is called so and is no number is a property's own schema."""
    least, most = schema.get("minProperties"), schema.get("maxProperties")
    return isinstance(most, int | float) or (isinstance(least, int | float) and least > 0)


def _references(document: Any) -> Iterator[str]:
    """The references of a JSON schema, and what is called so."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(reference := each.get("$ref"), str):
                yield reference
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def texts(document: Any) -> Iterator[str]:
    """Every name and every value of a document as it reads without JSON's escapes."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(reversed(each))
        elif isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            yield from each
            waiting.extend(reversed(each.values()))
        elif each is not None and not isinstance(each, bool):
            yield str(each)


def _kind(document: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null", bool: "true or false"}.get(
        type(document), "a number"
    )


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
