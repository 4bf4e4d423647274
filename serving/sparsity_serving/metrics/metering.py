"""Metrics: their names, where they go, and the numbers of one answered request.

They go to OTLP or the console where OTEL_METRICS_EXPORTER asks for it, and to a Prometheus endpoint where an address is
given. Without either nothing is recorded, and :func:`is_on` tells so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from sparsity.v1 import inference_pb2
from sparsity_rpc import semconv
from sparsity_rpc.errors import ConfigurationError

from sparsity_serving.otlp import metric_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

# Our own; those of OpenTelemetry's conventions are in `sparsity_rpc.semconv`.
TOKENS: Final = "sparsity.tokens"
PREFILL_DENSITY: Final = "sparsity.attention.density.prefill"
DECODE_DENSITY: Final = "sparsity.attention.density.decode"
COVERAGE: Final = "sparsity.attention.coverage"
ERRORS: Final = "sparsity.rpc.errors"

CLASSIFY_SECONDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0)
SHARES: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.999, 1.0)
Observed = tuple[str, str, str, Callable[[], Iterable[Observation]]]


def configure_metrics(service: str, listen: str | None, *, disabled: bool) -> None:
    """Installs the meter provider that the environment and ``listen`` ask for.

    Args:
        service: `service.name` of what is sent.
        listen: `host:port` to serve Prometheus' text format on, at /metrics; None serves none.
        disabled: whether OTEL_SDK_DISABLED holds, which also leaves the endpoint out.

    Raises:
        ConfigurationError: for an exporter other than otlp, console or none, a protocol that is not known, or an
            address that cannot be listened on.
    """
    kind = "none" if disabled else os.environ.get("OTEL_METRICS_EXPORTER") or "none"
    if kind not in ("otlp", "console", "none"):
        raise ConfigurationError(f"OTEL_METRICS_EXPORTER: must be otlp, console or none, not {kind!r}")
    if kind == "none" and (disabled or listen is None):
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    readers: list[MetricReader] = []
    if kind == "console":
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter()))
    elif kind == "otlp":
        readers.append(PeriodicExportingMetricReader(metric_exporter()))
    if listen is not None and not disabled:
        readers.append(_prometheus(listen))
    resource = Resource.create({"service.name": service})
    metrics.set_meter_provider(MeterProvider(metric_readers=readers, resource=resource))


def _prometheus(listen: str) -> MetricReader:
    from prometheus_client import REGISTRY, start_http_server

    from sparsity_serving.addresses import read_address, require_free
    from sparsity_serving.metrics.exemplars import ExemplarCollector

    require_free(listen, "--metrics-listen", any_port=False)
    host, port = read_address(listen, "--metrics-listen")
    collector = ExemplarCollector()
    REGISTRY.register(collector)
    start_http_server(port, host)
    return collector.reader


def meter_of(scope: str) -> metrics.Meter:
    """Whose metrics bear the names of `sparsity_rpc.semconv`, and say so."""
    return metrics.get_meter(scope, schema_url=semconv.SCHEMA_URL)


def is_on() -> bool:
    """Whether anybody gets what is recorded; it is decided before the first instrument is made."""
    return hasattr(metrics.get_meter_provider(), "shutdown")


def observe(meter: metrics.Meter, gauges: Iterable[Observed], counters: Iterable[Observed] = ()) -> None:
    """Registers gauges and counters, each a name, a unit, a description and what reads it when metrics are taken."""
    for create, observed in ((meter.create_observable_gauge, gauges), (meter.create_observable_counter, counters)):
        for name, unit, description, read in observed:
            create(name, [_callback(read)], unit, description)


def scalar(read: Callable[[], float], attributes: Mapping[str, str] | None = None) -> Callable[[], list[Observation]]:
    """What a gauge or a counter of one series reads; a truth value is told as 0 or 1, because OTLP knows none."""
    return lambda: [Observation(+read(), attributes)]


def histogram(meter: metrics.Meter, name: str, unit: str, what: str, bounds: Sequence[float]) -> metrics.Histogram:
    """A histogram whose buckets end at ``bounds``."""
    return meter.create_histogram(name, unit, what, explicit_bucket_boundaries_advisory=bounds)


def _callback(read: Callable[[], Iterable[Observation]]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: read()


class Total:
    """A counter that is only added up here and read when metrics are taken: a tenth of what the SDK's own costs."""

    def __init__(self, meter: metrics.Meter, name: str, unit: str, description: str) -> None:
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        meter.create_observable_counter(name, [_callback(self._read)], unit, description)

    def add(self, amount: float, attributes: Mapping[str, str]) -> None:
        """Adds to the series with these attributes, whose values must be few."""
        series = tuple(attributes.items())
        self._values[series] = self._values.get(series, 0) + amount

    def _read(self) -> list[Observation]:
        return [Observation(value, dict(series)) for series, value in list(self._values.items())]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one request, from its receipt to its end; None where no token came."""

    first_token: float | None
    total: float


class Generations:
    """Instruments of requests: times, and where they were answered tokens, density and coverage.

    Routers and workers have the same.
    """

    def __init__(self, meter: metrics.Meter) -> None:
        times = partial(histogram, meter, unit="s")
        self._duration = times(
            semconv.GEN_AI_SERVER_REQUEST_DURATION,
            what="From a request's receipt to its end.",
            bounds=semconv.REQUEST_SECONDS,
        )
        self._first = times(
            semconv.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
            what="From a request's receipt to its first token.",
            bounds=semconv.FIRST_TOKEN_SECONDS,
        )
        self._each = times(
            semconv.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
            what="Between tokens after the first.",
            bounds=semconv.OUTPUT_TOKEN_SECONDS,
        )
        shares = partial(histogram, meter, unit="1", bounds=SHARES)
        self._prefill = shares(PREFILL_DENSITY, what="Attended over causal pairs of the prompt.")
        self._decode = shares(DECODE_DENSITY, what="Attended over causal pairs of generated tokens.")
        self._coverage = shares(COVERAGE, what="Estimated share of softmax mass kept.")
        self._tokens = Total(meter, TOKENS, "{token}", "Tokens by kind: prompt, cached (of the prompt), new.")

    def record(
        self, completion: inference_pb2.Completion, times: Times, attributes: Mapping[str, str], operation: str
    ) -> None:
        """Takes up one answered request; its operation tells times apart, by the GenAI conventions."""
        usage, report = completion.usage, completion.sparsity
        timed = {**attributes, **_by_operation(operation)}
        self._duration.record(times.total, timed)
        if times.first_token is not None:
            self._first.record(times.first_token, timed)
            if usage.completion_tokens > 1:
                self._each.record((times.total - times.first_token) / (usage.completion_tokens - 1), timed)
        kinds = (("prompt", usage.prompt_tokens), ("cached", usage.cached_tokens), ("new", usage.completion_tokens))
        for kind, count in kinds:
            self._tokens.add(count, {**attributes, "sparsity.token.kind": kind})
        if completion.HasField("sparsity"):
            self._prefill.record(report.prefill_density, attributes)
            if usage.completion_tokens > 1:
                self._decode.record(report.decode_density, attributes)
            self._coverage.record(report.coverage, attributes)

    def failed(self, seconds: float, attributes: Mapping[str, str], operation: str, error: str) -> None:
        """Takes up one request that was not answered to its end, with the kind of its error."""
        self._duration.record(seconds, {**attributes, **_by_operation(operation), semconv.ERROR_TYPE: error})


def _by_operation(operation: str) -> dict[str, str]:
    return {semconv.GEN_AI_OPERATION_NAME: operation, semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER}
