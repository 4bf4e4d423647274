"""Receivers of OTLP: traces by gRPC, traces and metrics by HTTP."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects spans, grouped by trace."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                self._spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace_with(self, name: str, key: str, value: str, seconds: float = 30.0) -> dict[str, tuple[str, Any]]:
        """Spans by name of the trace whose span ``name`` has an attribute; waits until its ends are there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                spans = list(self._spans)
            for _, span in spans:
                if span.name == name and attributes(span).get(key) == value:
                    trace = {s.name: (service, s) for service, s in spans if s.trace_id == span.trace_id}
                    if {"client.generate", "engine.decode", "decode_forward"} <= trace.keys():
                        return trace
            time.sleep(0.2)
        names = sorted({span.name for _, span in self._spans})
        raise AssertionError(f"no complete trace with {name} {key}={value}; got {names}")

    def stop(self) -> None:
        self._server.stop(None)


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


class HttpReceiver:
    """Takes `http/protobuf` at the standard paths, and knows which service sent what there."""

    def __init__(self) -> None:
        kinds = {
            "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
            "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
        }
        self.names: set[tuple[str, str, str]] = set()
        """Path, service, and the name of a span or metric."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                known = self.path in kinds and self.headers["content-type"] == "application/x-protobuf"
                if known:
                    receiver._take(self.path, kinds[self.path].FromString(body))
                self.send_response(200 if known else 404)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _take(self, path: str, request: Any) -> None:
        for resource in request.resource_spans if path == "/v1/traces" else request.resource_metrics:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans if path == "/v1/traces" else resource.scope_metrics:
                told = scope.spans if path == "/v1/traces" else scope.metrics
                self.names |= {(path, service, each.name) for each in told}

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
