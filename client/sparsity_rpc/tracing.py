"""Spans, and their context across gRPC (W3C trace context).

They cost next to nothing where no tracer provider is installed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from sparsity_rpc import semconv
from sparsity_rpc.errors import SparsityError

MOST_CHARACTERS: Final = 512
"""Of a value that goes on: as much of `tracestate` as whoever passes it on should take (W3C trace context, 3.3.1.5)."""
BAGGAGE: Final = "baggage"
"""What an application tells its own services (W3C baggage): none of ours reads it, and it goes to none."""


def tracer(scope: str) -> trace.Tracer:
    """Whose spans bear the names of `semconv`, and say so."""
    return trace.get_tracer(scope, schema_url=semconv.SCHEMA_URL)


def server_of(target: str) -> dict[str, str | int]:
    """What a span of a call says of whom it calls, by gRPC's target: `host:port`, or another's whole name."""
    host, _, port = target.rpartition(":")
    if host and port.isdecimal():
        return {semconv.SERVER_ADDRESS: host.rpartition("/")[2].strip("[]"), semconv.SERVER_PORT: int(port)}
    return {semconv.SERVER_ADDRESS: target}


def error_type(error: BaseException) -> str:
    """The kind of an error by the conventions' `error.type`: gRPC's status where it has one, else its class."""
    return _status(error) or type(error).__qualname__


def _status(error: BaseException) -> str:
    """The name of gRPC's status; empty where an error has none."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED.name
    if isinstance(error, SparsityError):
        return error.code.name
    return str(error.code().name) if isinstance(error, grpc.RpcError) and hasattr(error, "code") else ""


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
    tracer: trace.Tracer, name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL, method: str = ""
) -> AbstractContextManager[trace.Span]:
    """A span under the present one; next to nothing where nobody would get it.

    Args:
        tracer: of the span.
        name: of the span.
        kind: of the span.
        method: whole name of the gRPC method that the span is a call of, `package.Service/Method`; empty for none.
    """
    return nullcontext(trace.INVALID_SPAN) if _off() else _present(tracer, name, kind, method)


@contextmanager
def _present(tracer: trace.Tracer, name: str, kind: trace.SpanKind, method: str) -> Iterator[trace.Span]:
    with (
        _opened(tracer, name, kind, otel_context.get_current(), method) as opened,
        _within(trace.set_span_in_context(opened)),
    ):
        yield opened


@contextmanager
def detached_span(
    tracer: trace.Tracer, name: str, kind: trace.SpanKind, method: str
) -> Iterator[tuple[trace.Span, tuple[tuple[str, str], ...]]]:
    """A span under the present one that never becomes it, with the metadata that carries it; arguments as of `span`.

    For generators: each step of one may run in another task, and what one task attached another cannot detach.
    """
    if _off():
        yield trace.INVALID_SPAN, outgoing()
        return
    with _opened(tracer, name, kind, otel_context.get_current(), method) as opened:
        with _within(trace.set_span_in_context(opened)):
            metadata = outgoing()
        yield opened, metadata


@contextmanager
def _opened(
    tracer: trace.Tracer, name: str, kind: trace.SpanKind, parent: otel_context.Context, method: str
) -> Iterator[trace.Span]:
    """A span that says how the block ended."""
    call = {semconv.RPC_SYSTEM_NAME: semconv.GRPC, semconv.RPC_METHOD: method} if method else None
    opened, status = tracer.start_span(name, context=parent, kind=kind, attributes=call), grpc.StatusCode.OK.name
    try:
        yield opened
    except BaseException as error:
        status = _status(error) or grpc.StatusCode.UNKNOWN.name
        # Who leaves ends a block too, which is no error of it.
        if isinstance(error, Exception):
            opened.record_exception(error)
            opened.set_attribute(semconv.ERROR_TYPE, error_type(error))
            opened.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        raise
    finally:
        if method:
            opened.set_attribute(semconv.RPC_RESPONSE_STATUS_CODE, status)
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
def server_span(
    tracer: trace.Tracer, name: str, method: str, context: grpc.aio.ServicerContext[Any, Any]
) -> Iterator[trace.Span]:
    """Opens a server span under the caller's, from the call's metadata (W3C trace context).

    Args:
        tracer: of the span.
        name: of the span.
        method: whole name of the gRPC method, which is told unless the context says that it `is_other` than gRPC's.
        context: of the call.
    """
    carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    if _off() and not carrier.keys() & set(propagate.get_global_textmap().fields):
        yield trace.INVALID_SPAN
        return
    parent = propagate.extract(carrier)
    if _off():
        with _within(parent):
            yield trace.INVALID_SPAN
        return
    told = "" if getattr(context, "is_other", False) else method
    with (
        _opened(tracer, name, trace.SpanKind.SERVER, parent, told) as opened,
        _within(trace.set_span_in_context(opened, parent)),
    ):
        yield opened
