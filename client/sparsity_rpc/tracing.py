"""Spans, and their context across gRPC (W3C trace context).

They cost next to nothing where no tracer provider is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

MOST_CHARACTERS: Final = 512
"""Of a value that goes on: as much of `tracestate` as whoever passes it on should take (W3C trace context, 3.3.1.5)."""
BAGGAGE: Final = "baggage"
"""What an application tells its own services (W3C baggage): none of ours reads it, and it goes to none."""


def passed_on(name: str, value: str) -> bool:
    """Whether a service tells the next what its caller told it of the trace.

    gRPC's servers refuse a call of 16 KiB of metadata as one that is too much for them: callers could make every worker
    look full.
    """
    return name != BAGGAGE and len(value) <= MOST_CHARACTERS


def outgoing() -> tuple[tuple[str, str], ...]:
    """gRPC metadata that carries the present span to the next service."""
    if not otel_context.get_current():
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(pair for pair in carrier.items() if passed_on(*pair))


@functools.cache
def _off() -> bool:
    """Whether no tracer provider is installed, so that every span is lost."""
    return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def forget() -> None:
    """Looks for a tracer provider anew; whoever installs one calls it."""
    _off.cache_clear()


def span(
    tracer: trace.Tracer, name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL
) -> AbstractContextManager[trace.Span]:
    """A span under the present one; next to nothing where nobody would get it."""
    return nullcontext(trace.INVALID_SPAN) if _off() else tracer.start_as_current_span(name, kind=kind)


@contextmanager
def detached_span(
    tracer: trace.Tracer, name: str, kind: trace.SpanKind
) -> Iterator[tuple[trace.Span, tuple[tuple[str, str], ...]]]:
    """A span under the present one that never becomes it, with the metadata that carries it.

    For generators: each step of one may run in another task, and what one task attached another cannot detach.
    """
    if _off():
        yield trace.INVALID_SPAN, outgoing()
        return
    with _opened(tracer, name, kind, otel_context.get_current()) as opened:
        with _within(trace.set_span_in_context(opened)):
            metadata = outgoing()
        yield opened, metadata


@contextmanager
def _opened(
    tracer: trace.Tracer, name: str, kind: trace.SpanKind, parent: otel_context.Context
) -> Iterator[trace.Span]:
    """A span that says how the block ended."""
    opened = tracer.start_span(name, context=parent, kind=kind)
    try:
        yield opened
    except Exception as error:
        opened.record_exception(error)
        opened.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        raise
    finally:
        opened.end()


@contextmanager
def _within(context: otel_context.Context) -> Iterator[None]:
    """Makes a context the present one."""
    token = otel_context.attach(context)
    try:
        yield
    finally:
        # A stream whose client is gone is closed by another task, which has nothing of this to put back; the public
        # function would log that as an error.
        with suppress(ValueError):
            otel_context._RUNTIME_CONTEXT.detach(token)


@contextmanager
def server_span(tracer: trace.Tracer, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[trace.Span]:
    """Opens a server span under the caller's, from the call's metadata (W3C trace context)."""
    carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    if _off() and not carrier.keys() & set(propagate.get_global_textmap().fields):
        yield trace.INVALID_SPAN
        return
    parent = propagate.extract(carrier)
    if _off():
        with _within(parent):
            yield trace.INVALID_SPAN
        return
    with (
        _opened(tracer, name, trace.SpanKind.SERVER, parent) as opened,
        _within(trace.set_span_in_context(opened, parent)),
    ):
        yield opened
