"""What a caller declares of a request, in `metadata` or in headers `x-sparsity-...`.

A name that is misspelt could ask for more attention than the request then gets: what is not known is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.tiers import Tier
from sparsity_rpc.tracing import passed_on

from sparsity_router.gateway.asking import Asked

PREFIX: Final = "x-sparsity-"
TIMEOUT: Final = f"{PREFIX}timeout"
REQUEST_ID: Final = "x-request-id"
LABEL: Final = "labels."
# Nothing else of a caller's reaches the pipeline, whose names for what routers tell each other are among the rest.
_KEY: Final = "authorization"
_TRACE: Final = ("traceparent", "tracestate")
_LONGEST_SECONDS = 86_400.0
Headers = Iterable[tuple[bytes, bytes]]


def _text(field: str) -> Callable[[inference_pb2.RequestContext, str, str], None]:
    def put(context: inference_pb2.RequestContext, value: str, name: str) -> None:
        setattr(context, field, value)

    return put


def _flags(context: inference_pb2.RequestContext, value: str, name: str) -> None:
    context.flags.extend(flag for flag in map(str.strip, value.split(",")) if flag)


def _max_tier(context: inference_pb2.RequestContext, value: str, name: str) -> None:
    try:
        tier = Tier[value.upper()]
    except KeyError as error:
        words = ", ".join(tier.word for tier in Tier)
        raise InvalidRequestError.of(name, f"must be one of {words}, not {value[:32]!r}") from error
    context.max_tier = tier.wire


def _dense_reasoning(context: inference_pb2.RequestContext, value: str, name: str) -> None:
    if value not in ("true", "false"):
        raise InvalidRequestError.of(name, f"must be true or false, not {value[:32]!r}")
    context.dense_reasoning = value == "true"


class Declaration(NamedTuple):
    """One thing to declare; its name in `metadata`, and what it says, for people."""

    put: Callable[[inference_pb2.RequestContext, str, str], None]
    said: str

    @staticmethod
    def header(name: str) -> str:
        """Its header."""
        return PREFIX + name.replace("_", "-")


DECLARATIONS: Final = {
    "domain": Declaration(_text("domain"), "risk domain; without it the router looks for one"),
    "task": Declaration(_text("task"), "what is asked, such as `qa`"),
    "flags": Declaration(_flags, "texts, by commas; any of them makes the request dense"),
    "max_tier": Declaration(_max_tier, "`dense`, `moderate` or `aggressive`: at least so much attention"),
    "session": Declaration(_text("session"), "the conversation that the request belongs to"),
    "tenant": Declaration(_text("tenant"), "whose request it is, where the key does not say"),
    "dense_reasoning": Declaration(_dense_reasoning, "`true`: reasoning decodes densely"),
}


class Called(NamedTuple):
    """A call's headers, as the pipeline takes them.

    Attributes:
        metadata: the key and the trace, as far as they go on.
        declared: values by the names of declarations.
        seconds: until the caller gives up; None without a deadline.
        label: of the caller's choice, for traces and the request log.
    """

    metadata: tuple[tuple[str, str], ...]
    declared: dict[str, str]
    seconds: float | None
    label: str


def read_headers(headers: Headers) -> Called:
    """Reads a call's headers.

    Raises:
        InvalidRequestError: for a header of ours that is not known, that is there twice, or that is no text.
    """
    names = {Declaration.header(name): name for name in DECLARATIONS}
    declared, seconds, label, metadata, once = {}, None, "", {}, set()
    for raw, value in headers:
        name = raw.decode("latin-1")
        ours = name.startswith(PREFIX)
        if ours or name == _KEY:
            if name in once:
                raise InvalidRequestError.of(name, "is there twice")
            once.add(name)
        try:
            text = value.decode("utf-8" if ours else "latin-1").strip()
        except UnicodeDecodeError as error:
            raise InvalidRequestError.of(name, "is no UTF-8 text") from error
        if name == TIMEOUT:
            seconds = _seconds(text)
        elif name == REQUEST_ID:
            label = text
        elif name == _KEY or (name in _TRACE and passed_on(name, text)):
            metadata[name] = text
        elif ours:
            if name not in names:
                known = ", ".join((*names, TIMEOUT))
                raise InvalidRequestError.of(name, f"is not known here; the headers are {known}")
            declared[names[name]] = text
    return Called(tuple(metadata.items()), declared, seconds, label)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise InvalidRequestError.of(TIMEOUT, f"must be seconds, more than 0 and at most {_LONGEST_SECONDS:g}")
    return seconds


def declare(asked: Asked, called: Called) -> None:
    """Puts what is declared into a request.

    Raises:
        InvalidRequestError: for what is not known, and for what is declared twice, differently.
    """
    context = asked.message.context
    for key, value in asked.metadata.items():
        name = f"metadata.{key}"
        if key.startswith(LABEL):
            context.labels[key.removeprefix(LABEL)] = value
            asked.names["context.labels"] = "metadata"
        elif key not in DECLARATIONS:
            known = ", ".join(DECLARATIONS)
            raise InvalidRequestError.of(name, f"is not known here; there are {known}, and {LABEL}NAME for labels")
        elif called.declared.get(key, value) != value:
            raise InvalidRequestError.of(name, f"differs from the header {Declaration.header(key)}: send one")
        else:
            _put(asked, key, value, name)
    for key, value in called.declared.items():
        if key not in asked.metadata:
            _put(asked, key, value, Declaration.header(key))
    if called.label:
        asked.message.request_id = called.label
        asked.names["request_id"] = REQUEST_ID


def _put(asked: Asked, key: str, value: str, name: str) -> None:
    asked.names[f"context.{key}"] = name
    DECLARATIONS[key].put(asked.message.context, value, name)
