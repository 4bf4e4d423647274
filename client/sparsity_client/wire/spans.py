"""What the spans of both clients say of a call."""

from __future__ import annotations

from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_rpc.generation import completed, requested
from sparsity_rpc.tracing import server_of


def asked(span: trace.Span, request: inference_pb2.GenerateRequest, target: str) -> None:
    """What the router at ``target`` is asked for."""
    if span.is_recording():
        span.set_attributes({**requested(request, request.model), **server_of(target)})


def answered(span: trace.Span, response: inference_pb2.GenerateResponse) -> None:
    """What a message says of the answer; only the last does."""
    if response.HasField("completion") and span.is_recording():
        span.set_attributes(completed(response.completion))
