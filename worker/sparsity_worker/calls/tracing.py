"""Spans of the worker: one a request, with the engine's prefill and decode inside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_rpc import semconv, tracing
from sparsity_rpc.generation import completed, operation
from sparsity_rpc.methods import WORKER_GENERATE
from sparsity_serving import telemetry

if TYPE_CHECKING:
    from sparsity_worker.calls.identity import Identity, ServedTier
    from sparsity_worker.engine.sglang_engine import EngineRequest

_tracer = tracing.tracer("sparsity.worker")


class Generation:
    """The spans of one request.

    Args:
        span: of the whole.
        operation: by the GenAI conventions.

    Attributes:
        is_finished: whether it was answered to its end.
    """

    def __init__(self, span: trace.Span, operation: str) -> None:
        self.operation = operation
        self.is_finished = False
        self._span = span
        self._started = time.time_ns()
        self._first: int | None = None

    def first_token(self) -> None:
        """Ends the prefill span."""
        self._first = time.time_ns()
        self._child("engine.prefill", self._started, self._first)

    def finished(self, completion: inference_pb2.Completion) -> None:
        """Ends the decode span and describes the request."""
        self.is_finished = True
        if not self._span.is_recording():
            return
        self._child("engine.decode", self._first or self._started, time.time_ns())
        self._span.set_attributes({**completed(completion), **telemetry.attended(completion)})

    def _child(self, name: str, start: int, end: int) -> None:
        if self._span.is_recording():
            within = trace.set_span_in_context(self._span)
            _tracer.start_span(name, context=within, start_time=start).end(end)


@contextmanager
def generation(
    context: grpc.aio.ServicerContext[Any, Any],
    request: EngineRequest,
    identity: Identity,
    served: ServedTier,
    *,
    is_chat: bool,
) -> Iterator[Generation]:
    """Opens the request's span under the caller's."""
    named = operation(is_chat=is_chat)
    with tracing.server_span(_tracer, "worker.generate", WORKER_GENERATE, context) as span:
        if span.is_recording():
            span.set_attributes(
                {
                    semconv.GEN_AI_OPERATION_NAME: named,
                    semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER,
                    semconv.GEN_AI_REQUEST_MODEL: identity.facts.name,
                    semconv.GEN_AI_REQUEST_STREAM: True,
                    semconv.GEN_AI_REQUEST_MAX_TOKENS: request.sampling["max_new_tokens"],
                    semconv.GEN_AI_REQUEST_TEMPERATURE: float(request.sampling["temperature"]),
                    telemetry.TIER: served.name,
                    telemetry.PROFILE: served.label,
                    telemetry.WORKER_ID: identity.config.worker_id,
                    telemetry.REQUEST_ID: request.rid,
                }
            )
        yield Generation(span, named)
