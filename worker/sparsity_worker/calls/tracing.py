"""Spans of the worker: one a request, with the engine's prefill and decode inside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_rpc import tracing
from sparsity_serving import telemetry

if TYPE_CHECKING:
    from sparsity_worker.calls.identity import Identity, ServedTier
    from sparsity_worker.engine.sglang_engine import EngineRequest

_tracer = trace.get_tracer("sparsity.worker")


class Generation:
    """The spans of one request."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._started = time.time_ns()
        self._first: int | None = None

    def first_token(self) -> None:
        """Ends the prefill span."""
        self._first = time.time_ns()
        self._child("engine.prefill", self._started, self._first)

    def finished(self, completion: inference_pb2.Completion, finish: str) -> None:
        """Ends the decode span and describes the request."""
        if not self._span.is_recording():
            return
        usage = completion.usage
        self._child("engine.decode", self._first or self._started, time.time_ns())
        self._span.set_attributes(
            {
                telemetry.GEN_AI_INPUT_TOKENS: usage.prompt_tokens,
                telemetry.GEN_AI_OUTPUT_TOKENS: usage.completion_tokens,
                telemetry.GEN_AI_FINISH_REASONS: [finish],
                telemetry.CACHED_TOKENS: usage.cached_tokens,
                **telemetry.attended(completion),
            }
        )

    def _child(self, name: str, start: int, end: int) -> None:
        if self._span.is_recording():
            within = trace.set_span_in_context(self._span)
            _tracer.start_span(name, context=within, start_time=start).end(end)


@contextmanager
def generation(
    context: grpc.aio.ServicerContext[Any, Any], request: EngineRequest, identity: Identity, served: ServedTier
) -> Iterator[Generation]:
    """Opens the request's span under the caller's."""
    with tracing.server_span(_tracer, "worker.generate", context) as span:
        if span.is_recording():
            span.set_attributes(
                {
                    telemetry.GEN_AI_OPERATION: "text_completion",
                    telemetry.GEN_AI_MODEL: identity.facts.name,
                    telemetry.GEN_AI_MAX_TOKENS: request.sampling["max_new_tokens"],
                    telemetry.GEN_AI_TEMPERATURE: float(request.sampling["temperature"]),
                    telemetry.TIER: served.name,
                    telemetry.PROFILE: served.label,
                    telemetry.WORKER_ID: identity.config.worker_id,
                    telemetry.REQUEST_ID: request.rid,
                }
            )
        yield Generation(span)
