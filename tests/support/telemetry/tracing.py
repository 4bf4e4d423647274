"""Spans kept in memory, in the place of what the environment would have them sent to."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sparsity_rpc import tracing

# Module, and its scope.
_TRACED = {
    "sparsity_client.wire.aio": "sparsity.client",
    "sparsity_client.wire.blocking": "sparsity.client",
    "sparsity_router.relaying.dispatch": "sparsity.router",
    "sparsity_router.decisions.decider": "sparsity.router",
    "sparsity_router.services.inference": "sparsity.router",
    "sparsity_worker.calls.tracing": "sparsity.worker",
}


class Spans:
    """What was traced while a test patches what it patches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kept, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        tracing.forget()
        for module, scope in _TRACED.items():
            monkeypatch.setattr(import_module(module), "_tracer", tracing.tracer(scope))

    def all(self, name: str) -> list[ReadableSpan]:
        """Those of a name that have ended, in the order of their ends."""
        return [span for span in self._kept.get_finished_spans() if span.name == name]

    def told(self, name: str) -> dict[str, Any]:
        """What the last of a name says."""
        return dict(self.all(name)[-1].attributes or {})

    def everything(self) -> str:
        """All of them as they are sent."""
        return "\n".join(span.to_json() for span in self._kept.get_finished_spans())
