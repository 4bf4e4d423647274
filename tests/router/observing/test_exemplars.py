from __future__ import annotations

import urllib.request

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sparsity_serving.metrics.exemplars import ExemplarCollector
from sparsity_serving.metrics.metering import Total, histogram
from support.ports import free_port


@pytest.fixture
def served() -> tuple[MeterProvider, int]:
    """A meter provider, and the port that its metrics are served on."""
    registry, collector = CollectorRegistry(), ExemplarCollector()
    registry.register(collector)
    port = free_port()
    start_http_server(port, "127.0.0.1", registry)
    return MeterProvider(metric_readers=[collector.reader]), port


def scrape(port: int, kind: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": kind})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_bucket_names_a_trace_that_fell_into_it(served: tuple[MeterProvider, int]) -> None:
    provider, port = served
    meter = provider.get_meter("test")
    times = histogram(meter, "sparsity.test.duration", "s", "Time.", (0.1, 1.0, 10.0))
    Total(meter, "sparsity.test.calls", "{call}", "Calls.").add(2, {"sparsity.tier": "dense"})
    tracer = TracerProvider().get_tracer("test")
    ids = {}
    for seconds in (0.5, 0.7, 5.0):
        with tracer.start_as_current_span("request") as span:
            times.record(seconds, {"sparsity.tier": "dense"})
            ids[seconds] = trace.format_trace_id(span.get_span_context().trace_id)
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("unsampled"):
        times.record(50.0, {"sparsity.tier": "dense"})
    families = {
        each.name: each for each in text_string_to_metric_families(scrape(port, "application/openmetrics-text"))
    }
    buckets = {
        sample.labels["le"]: sample
        for sample in families["sparsity_test_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert {le: sample.value for le, sample in buckets.items()} == {"0.1": 0, "1.0": 2, "10.0": 3, "+Inf": 4}
    named = {le: sample.exemplar.labels["trace_id"] for le, sample in buckets.items() if sample.exemplar}
    assert named == {"1.0": ids[0.7], "10.0": ids[5.0]}
    assert buckets["10.0"].exemplar.value == 5.0
    assert families["sparsity_test_calls"].samples[0].value == 2


def test_series_of_one_metric_may_have_other_labels(served: tuple[MeterProvider, int]) -> None:
    provider, port = served
    times = histogram(provider.get_meter("test"), "sparsity.test.duration", "s", "Time.", (0.1, 1.0))
    ids = {}
    for error in ("", "UNAVAILABLE"):
        with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
            times.record(0.5, {"sparsity.tier": "dense"} | ({"error.type": error} if error else {}))
            ids[error] = trace.format_trace_id(span.get_span_context().trace_id)
    (family,) = (
        each
        for each in text_string_to_metric_families(scrape(port, "application/openmetrics-text"))
        if each.name == "sparsity_test_duration_seconds"
    )
    named = {
        sample.labels["error_type"]: sample.exemplar.labels["trace_id"] for sample in family.samples if sample.exemplar
    }
    assert named == ids


def test_the_old_format_goes_without(served: tuple[MeterProvider, int]) -> None:
    provider, port = served
    times = histogram(provider.get_meter("test"), "sparsity.test.duration", "s", "Time.", (0.1, 1.0))
    with TracerProvider().get_tracer("test").start_as_current_span("request"):
        times.record(0.5, {})
    text = scrape(port, "text/plain")
    assert 'sparsity_test_duration_seconds_bucket{le="1.0"} 1.0' in text
    assert "trace_id" not in text
