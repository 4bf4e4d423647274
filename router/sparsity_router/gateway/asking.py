"""What a caller of the HTTP door asks for, on its way from OpenAI's JSON into a request of the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError, Violation

# Told at once: more help nobody.
_MOST_VIOLATIONS: Final = 20


@dataclass(slots=True)
class Asked:
    """A request as far as it has been read.

    Attributes:
        message: for the pipeline.
        model: that is asked for.
        stream: whether the answer comes by server-sent events.
        usage: whether a stream ends with its token counts.
        one_call: whether the answer calls one tool at most.
        names: what the caller calls a field, by its path in the contract.
        metadata: pairs that are read beside the headers.
        most_ids: token ids that a prompt may have.
    """

    message: inference_pb2.GenerateRequest = field(default_factory=inference_pb2.GenerateRequest)
    model: str = ""
    stream: bool = False
    usage: bool = False
    one_call: bool = False
    names: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    most_ids: int = 2**20

    def called(self, path: str) -> str:
        """A path of the contract, or of a part of it, as the caller knows it."""
        known = max((own for own in self.names if path == own or path.startswith((f"{own}.", f"{own}["))), default="")
        return self.names[known] + path.removeprefix(known) if known else path

    def in_its_words(self, error: InvalidRequestError) -> InvalidRequestError:
        """The same mistakes, by the names of the caller's fields."""
        told = [Violation(self.called(found.field), found.problem) for found in error.violations]
        return InvalidRequestError(*told).about(error.metadata)


Put = Callable[[Asked, Any, str], None]
"""Puts a field's value, as JSON has it, into a request; raises InvalidRequestError by the name that it gets."""


class Use(Enum):
    """What becomes of a field."""

    TAKEN = "taken"
    REFUSED = "refused"
    IGNORED = "ignored"


class Field(NamedTuple):
    """A field of a JSON object.

    Attributes:
        name: as OpenAI spells it.
        use: what becomes of it.
        said: why, or where it goes, for people.
        put: reads a taken one.
        path: of a taken one in the contract.
        neutral: values of a refused one that ask for nothing.
    """

    name: str
    use: Use
    said: str
    put: Put | None = None
    path: str = ""
    neutral: tuple[Any, ...] = ()


def taken(name: str, said: str, put: Put, path: str = "") -> Field:
    """A field that means here what it means at OpenAI, or what ``said`` tells."""
    return Field(name, Use.TAKEN, said, put, path)


def refused(name: str, said: str, *neutral: Any) -> Field:
    """A field that the service cannot do; ``neutral`` values ask for nothing."""
    return Field(name, Use.REFUSED, said, neutral=neutral)


def ignored(name: str, said: str) -> Field:
    """A field without which the answer is the same."""
    return Field(name, Use.IGNORED, said)


def read(fields: dict[str, Field], document: dict[str, Any], asked: Asked, prefix: str = "") -> None:
    """Puts every field of a JSON object into a request. A field that is null was not sent.

    Args:
        fields: that are known, by name.
        document: the object.
        asked: is filled.
        prefix: of the object within the whole, such as `messages[0].`.

    Raises:
        InvalidRequestError: with one violation a field, of the first 20.
    """
    violations: list[Violation] = []
    for name, value in document.items():
        if len(violations) >= _MOST_VIOLATIONS:
            violations.append(Violation(prefix.rstrip(".") or "body", "is not read any further after these mistakes"))
            break
        shown, field = prefix + name, fields.get(name)
        if value is None or (field is not None and field.use is Use.IGNORED):
            continue
        if field is None:
            violations.append(Violation(shown, "is not known here; leave it out"))
        elif field.put is None:
            # 1 is not true, though Python calls them equal.
            if not any(type(value) is type(one) and value == one for one in field.neutral):
                violations.append(Violation(shown, f"is not served here: {field.said}"))
        else:
            try:
                field.put(asked, value, shown)
            except InvalidRequestError as error:
                violations += error.violations
            except UnicodeEncodeError as error:
                violations += InvalidRequestError.no_text(shown, error).violations
            if field.path:
                asked.names[field.path] = shown
    if violations:
        raise InvalidRequestError(*violations)
