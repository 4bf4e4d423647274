"""Traces read from files, as trees."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, NotFoundError
from sparsity_serving import telemetry

_LEAST_DIGITS = 6


@dataclass(slots=True)
class Span:
    """One span, with the spans under it by their start.

    Attributes:
        service: `service.name` of who made it.
        start: nanoseconds since the epoch.
        end: the same.
        error: what went wrong; empty when nothing did.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start: int
    end: int
    error: str
    attributes: dict[str, Any]
    children: list[Span] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e9


def read_trace(paths: Iterable[Path], wanted: str) -> list[Span]:
    """The roots of the trace whose id, or whose decision's id, begins with ``wanted``; by their start.

    A trace whose first span lies elsewhere, such as in a caller's own collector, has its topmost spans for roots.

    Raises:
        InvalidRequestError: when ``wanted`` is too short, or several traces begin so.
        NotFoundError: when no trace does.
        ConfigurationError: when a file cannot be read.
    """
    if len(wanted) < _LEAST_DIGITS:
        raise InvalidRequestError.of("ID", f"must have {_LEAST_DIGITS} characters or more")
    paths = list(paths)
    found = {span.trace_id for span in _spans(paths) if _is_it(span, wanted)}
    if not found:
        problem = "it may not have been sampled, or be a few seconds too young"
        raise NotFoundError(f"no trace {wanted} in {', '.join(map(str, paths))}; {problem}")
    if len(found) > 1:
        raise InvalidRequestError.of("ID", f"several traces begin so: {', '.join(sorted(found))}")
    spans = {span.span_id: span for span in _spans(paths) if span.trace_id in found}
    roots: list[Span] = []
    for span in sorted(spans.values(), key=lambda span: span.start):
        parent = spans.get(span.parent_id)
        (parent.children if parent else roots).append(span)
    return roots


def _is_it(span: Span, wanted: str) -> bool:
    return span.trace_id.startswith(wanted) or str(span.attributes.get(telemetry.DECISION_ID, "")).startswith(wanted)


def _spans(paths: Iterable[Path]) -> Iterator[Span]:
    for path in paths:
        try:
            with open(path, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    yield from _of_line(line, f"{path}:{number}")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: cannot be read: {error}") from error


def _of_line(line: str, place: str) -> Iterator[Span]:
    try:
        for resource in json.loads(line).get("resourceSpans", ()):
            service = _attributes(resource.get("resource", {})).get("service.name", "")
            for scope in resource.get("scopeSpans", ()):
                yield from (_span(span, service) for span in scope.get("spans", ()))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        problem = "is no line of the OTLP file exporter's JSON"
        raise ConfigurationError(f"{place}: {problem} ({type(error).__name__}: {error})") from error


def _span(span: dict[str, Any], service: str) -> Span:
    status = span.get("status", {})
    failed = status.get("code") in (2, "STATUS_CODE_ERROR")
    return Span(
        trace_id=span["traceId"].lower(),
        span_id=span["spanId"].lower(),
        parent_id=span.get("parentSpanId", "").lower(),
        name=span["name"],
        service=service,
        start=int(span["startTimeUnixNano"]),
        end=int(span["endTimeUnixNano"]),
        error=status.get("message", "failed") if failed else "",
        attributes=_attributes(span),
    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: _value(entry.get("value", {})) for entry in holder.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    """A plain value; numbers of 64 bits are text in JSON."""
    kind: str = next(iter(value), "")
    plain: Any = value.get(kind, "")
    if kind == "arrayValue":
        return [_value(item) for item in plain.get("values", ())]
    return int(plain) if kind == "intValue" else plain
