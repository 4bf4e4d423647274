"""Traces and metrics go by the OTLP protocol that the environment names."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving import otlp, telemetry
from sparsity_worker.echo.model import CONTEXT, write_echo_model
from support.ports import free_port
from support.routers.router_process import RouterProcess
from support.telemetry.otlp import HttpReceiver

_PREFIX = "OTEL_EXPORTER_OTLP"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpReceiver]:
    """A collector that both processes are told of by the variables for all signals."""
    made = HttpReceiver()
    for name, value in {
        f"{_PREFIX}_ENDPOINT": f"http://127.0.0.1:{made.port}",
        f"{_PREFIX}_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }.items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


def gets(receiver: HttpReceiver, *wanted: tuple[str, str, str]) -> None:
    deadline = time.monotonic() + 20
    while not receiver.names.issuperset(wanted):
        assert time.monotonic() < deadline, sorted(receiver.names)
        time.sleep(0.1)


def test_a_router_sends_by_http(tmp_path: Path, receiver: HttpReceiver) -> None:
    (tmp_path / "policies").mkdir()
    with RouterProcess(tmp_path, "--policy-dir", str(tmp_path / "policies")) as router:
        with grpc.insecure_channel(router.address) as channel:
            asked = inference_pb2.ExplainRequest(request=make_request("hi"))
            inference_pb2_grpc.InferenceServiceStub(channel).Explain(asked, timeout=10.0)
        service = "sparsity-router"
        gets(
            receiver,
            ("/v1/traces", service, "router.explain"),
            ("/v1/metrics", service, "sparsity.policy.revision"),
        )


def test_a_worker_sends_by_http(tmp_path: Path, receiver: HttpReceiver) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "sparsity_worker", "--worker-id", "w", "--tiers", "dense", "--engine", "echo"]
    command += ["--model", str(write_echo_model(tmp_path / "echo")), "--listen", address]
    asked = worker_pb2.WorkerServiceGenerateRequest(request_id="r")
    asked.text.text, asked.text.max_tokens = "hi", CONTEXT
    with subprocess.Popen(command) as worker, grpc.insecure_channel(address) as channel:
        try:
            list(worker_pb2_grpc.WorkerServiceStub(channel).Generate(asked, wait_for_ready=True, timeout=30.0))
            service = "sparsity-worker"
            gets(
                receiver,
                ("/v1/traces", service, "worker.generate"),
                ("/v1/metrics", service, "sparsity.worker.requests"),
            )
        finally:
            worker.terminate()


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, otlp.Collector("grpc", "localhost:4317")),
        ({"ENDPOINT": "http://c:1"}, otlp.Collector("grpc", "c:1")),
        ({"ENDPOINT": "https://c:1"}, None),
        ({"ENDPOINT": "http://c:1/", "PROTOCOL": "http/protobuf"}, ("http/protobuf", "http://c:1/v1/traces")),
        ({"TRACES_ENDPOINT": "https://c/t", "PROTOCOL": "http/protobuf"}, ("http/protobuf", "https://c/t")),
        ({"TRACES_PROTOCOL": "http/protobuf"}, ("http/protobuf", "http://localhost:4318/v1/traces")),
        ({"PROTOCOL": "http/protobuf", "TRACES_PROTOCOL": "grpc", "ENDPOINT": "http://c:1"}, ("grpc", "c:1")),
        ({"METRICS_PROTOCOL": "http/protobuf"}, ("grpc", "localhost:4317")),
    ],
)
def test_the_engines_own_traces_go_where_ours_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: tuple[str, str] | None
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name, value in variables.items():
        monkeypatch.setenv(f"{_PREFIX}_{name}", value)
    assert telemetry.traces_collector() == wanted


@pytest.mark.parametrize(
    ("variable", "exporter"),
    [
        (f"{_PREFIX}_PROTOCOL", "OTEL_TRACES_EXPORTER"),
        (f"{_PREFIX}_TRACES_PROTOCOL", "OTEL_TRACES_EXPORTER"),
        (f"{_PREFIX}_METRICS_PROTOCOL", "OTEL_METRICS_EXPORTER"),
    ],
)
def test_an_unknown_protocol_is_told(monkeypatch: pytest.MonkeyPatch, variable: str, exporter: str) -> None:
    monkeypatch.setenv(exporter, "otlp")
    monkeypatch.setenv(variable, "http/json")
    with pytest.raises(ConfigurationError, match=f"{variable}: must be grpc or http/protobuf, not 'http/json'"):
        telemetry.configure("ours")


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setenv(f"{_PREFIX}_PROTOCOL", "http/protobuf")
    for make in (otlp.span_exporter, otlp.metric_exporter):
        with pytest.raises(ConfigurationError, match="needs the package opentelemetry-exporter-otlp-proto-http"):
            make()
