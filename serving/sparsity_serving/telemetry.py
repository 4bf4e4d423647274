"""Traces: names, and set-up by the standard OpenTelemetry variables.

Off by default and then free: without an exporter no SDK is loaded, and the API's spans do nothing.
"""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import unquote

from opentelemetry import metrics, trace
from sparsity.v1 import inference_pb2
from sparsity_rpc import tracing
from sparsity_rpc.errors import ConfigurationError

from sparsity_serving.metrics.metering import configure_metrics
from sparsity_serving.otlp import TRACES, Collector, collector, has_endpoint, span_exporter

# Our own; those of OpenTelemetry's conventions are in `sparsity_rpc.semconv`.
TIER: Final = "sparsity.tier"
POLICY_TIER: Final = "sparsity.policy.tier"
REASON: Final = "sparsity.reason"
DOMAIN: Final = "sparsity.domain"
DECISION_ID: Final = "sparsity.decision.id"
MATCHED_RULE: Final = "sparsity.policy.rule"
POLICY_REVISION: Final = "sparsity.policy.revision"
PROMPT_TOKENS: Final = "sparsity.prompt.tokens"
SCANNED_BYTES: Final = "sparsity.prompt.scanned_bytes"
FLAGS: Final = "sparsity.prompt.flags"
WORKER_ID: Final = "sparsity.worker.id"
ATTEMPT: Final = "sparsity.attempt"
PROFILE: Final = "sparsity.profile"
REQUEST_ID: Final = "sparsity.request.id"
REQUEST_LABEL: Final = "sparsity.request.label"
PREFILL_DENSITY: Final = "sparsity.density.prefill"
DECODE_DENSITY: Final = "sparsity.density.decode"
COVERAGE: Final = "sparsity.coverage"


def attended(completion: inference_pb2.Completion) -> dict[str, float]:
    """What a span says of a request's attention: nothing where its worker reported nothing."""
    if not completion.HasField("sparsity"):
        return {}
    report = completion.sparsity
    return {PREFILL_DENSITY: report.prefill_density, DECODE_DENSITY: report.decode_density, COVERAGE: report.coverage}


def _disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"


def _exporter() -> str:
    """`otlp`, `console` or `none`, by OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER and the OTLP endpoint variables."""
    if _disabled():
        return "none"
    default = "otlp" if has_endpoint(TRACES) else "none"
    return os.environ.get("OTEL_TRACES_EXPORTER") or default


def sends_traces() -> bool:
    """Whether the environment asks for an exporter of traces, or for none by name."""
    return _disabled() or bool(os.environ.get("OTEL_TRACES_EXPORTER")) or _exporter() != "none"


def traces_collector() -> Collector | None:
    """The OTLP collector that the engine's own traces can go to as well; None where there is none, or they cannot."""
    return collector() if _exporter() == "otlp" else None


def _named_resource() -> str:
    """The service's name by OTEL_RESOURCE_ATTRIBUTES (`key=value,...`, percent-encoded); empty without one."""
    pairs = (pair.partition("=") for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return next((unquote(value.strip()) for key, _, value in pairs if key.strip() == "service.name"), "")


def configure(service: str, metrics_listen: str | None = None) -> None:
    """Installs the tracer and meter providers that are asked for; does nothing when none is.

    Args:
        service: our name, where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES give no other.
        metrics_listen: `host:port` to serve metrics on, see :mod:`sparsity_serving.metrics.metering`.

    Raises:
        ConfigurationError: for an exporter other than otlp, console or none, a protocol that is not known, or an
            address that cannot be listened on.
    """
    name = os.environ.get("OTEL_SERVICE_NAME") or _named_resource() or service
    _configure_traces(name)
    configure_metrics(name, metrics_listen, disabled=_disabled())
    tracing.forget()


def _configure_traces(name: str) -> None:
    kind = _exporter()
    if kind == "none":
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    if kind == "otlp":
        provider.add_span_processor(BatchSpanProcessor(span_exporter()))
    elif kind == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    else:
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: must be otlp, console or none, not {kind!r}")
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Sends what is left."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        stop = getattr(provider, "shutdown", None)
        if stop is not None:
            stop()
