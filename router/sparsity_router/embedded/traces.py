"""The embedded service's traces: an OTLP receiver that keeps what it gets in a file, for `sparsity trace`.

The file is of the OpenTelemetry Protocol File Exporter's format: one TracesData in JSON a line, ids in hexadecimal
(https://opentelemetry.io/docs/specs/otel/protocol/file-exporter). Collectors write and read the same.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

FILE_NAME: Final = "traces.jsonl"
_MAX_BYTES = 16 * 2**20
_IDS = ("traceId", "spanId", "parentSpanId")


class TraceReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP/gRPC receiver on a free port of the loopback; it keeps the last 16 to 32 MiB in ``path`` and `path.1`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Takes up spans."""
        document = json_format.MessageToDict(request)
        for span in _spans(document):
            span.update({name: base64.b64decode(span[name]).hex() for name in _IDS if name in span})
        line = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        with self._lock:
            if self._path.exists() and self._path.stat().st_size > _MAX_BYTES:
                self._path.replace(older(self._path))
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        """Ends it; what is under way is kept."""
        self._server.stop(1.0).wait()


def older(path: Path) -> Path:
    """The file that ``path`` was moved to when it was full."""
    return path.with_name(f"{path.name}.1")


def _spans(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())
