"""How a service is named in what it tells of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sparsity_rpc import tracing
from sparsity_serving import telemetry


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=edge%20router ,c=d"}, "edge router"),
        ({"OTEL_SERVICE_NAME": "first", "OTEL_RESOURCE_ATTRIBUTES": "service.name=second"}, "first"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=x,odd"}, "ours"),
    ],
)
def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str) -> None:
    named: list[str] = []
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(telemetry, "_configure_traces", named.append)
    monkeypatch.setattr(telemetry, "configure_metrics", lambda service, *_, **__: named.append(service))
    telemetry.configure("ours")
    assert named == [name, name]


async def test_a_stream_that_another_task_closes_leaves_no_complaint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    call = SimpleNamespace(invocation_metadata=lambda: (("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"),))

    async def stream() -> AsyncGenerator[int]:
        with tracing.server_span(provider.get_tracer("test"), "served", "a.B/C", cast(Any, call)):
            yield 1

    for off in (False, True):
        monkeypatch.setattr(tracing, "_off", lambda off=off: off)
        begun = stream()
        assert await asyncio.create_task(anext(begun)) == 1
        await asyncio.create_task(begun.aclose())
    assert "detach" not in caplog.text
    (found,) = spans.get_finished_spans()
    assert found.parent is not None
    assert f"{found.parent.span_id:x}" == "2" * 16
