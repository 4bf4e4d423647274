"""Where traces and metrics go by OTLP, and by which protocol: OpenTelemetry's variables, those of one signal first.

https://opentelemetry.io/docs/specs/otel/protocol/exporter
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from sparsity_rpc.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"
TRACES: Final = "TRACES"
METRICS: Final = "METRICS"
_ENDPOINTS: Final = {GRPC: "http://localhost:4317", HTTP: "http://localhost:4318"}
_PACKAGE: Final = "opentelemetry-exporter-otlp-proto-http"


class Collector(NamedTuple):
    """A receiver of traces.

    Attributes:
        protocol: by which it is sent to.
        endpoint: `host:port` by gRPC, the whole URL by HTTP.
    """

    protocol: str
    endpoint: str


def _variable(signal: str, what: str) -> tuple[str, str]:
    """Name and value of the variable that holds for a signal; a value of nothing is no value."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
    return next(((name, value) for name in names if (value := os.environ.get(name, "").strip())), (names[1], ""))


def has_endpoint(signal: str) -> bool:
    """Whether the environment says where a signal goes."""
    return bool(_variable(signal, "ENDPOINT")[1])


def protocol(signal: str) -> str:
    """`grpc`, the default, or `http/protobuf`.

    Raises:
        ConfigurationError: for another one, naming the variable.
    """
    name, value = _variable(signal, "PROTOCOL")
    if value not in ("", GRPC, HTTP):
        raise ConfigurationError(f"{name}: must be {GRPC} or {HTTP}, not {value!r}")
    return value or GRPC


def span_exporter() -> SpanExporter:
    """Sends traces as the environment says.

    Raises:
        ConfigurationError: for a protocol that is not known, or whose package is not installed.
    """
    exporter: SpanExporter = _exporters(TRACES, "trace_exporter").OTLPSpanExporter()
    return exporter


def metric_exporter() -> MetricExporter:
    """Sends metrics as the environment says.

    Raises:
        ConfigurationError: for a protocol that is not known, or whose package is not installed.
    """
    exporter: MetricExporter = _exporters(METRICS, "metric_exporter").OTLPMetricExporter()
    return exporter


def _exporters(signal: str, module: str) -> Any:
    """OpenTelemetry's module that sends a signal by its protocol; only the one of gRPC always comes with us."""
    if protocol(signal) == GRPC:
        return import_module(f"opentelemetry.exporter.otlp.proto.grpc.{module}")
    try:
        return import_module(f"opentelemetry.exporter.otlp.proto.http.{module}")
    except ImportError as error:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {HTTP} needs the package {_PACKAGE}: {error}"
        ) from error


def collector() -> Collector | None:
    """Where traces go, for an exporter that knows no TLS by gRPC; None where it would need that."""
    kind = protocol(TRACES)
    name, value = _variable(TRACES, "ENDPOINT")
    if kind == HTTP:
        # One for all signals is a base; one for traces is used as it is.
        whole = value if f"_{TRACES}_" in name and value else f"{(value or _ENDPOINTS[HTTP]).rstrip('/')}/v1/traces"
        return Collector(HTTP, whole)
    endpoint = urlsplit(value or _ENDPOINTS[GRPC])
    return Collector(GRPC, endpoint.netloc) if endpoint.scheme == "http" else None
