from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sparsity_cli.main import app
from sparsity_router.embedded import traces
from sparsity_router.embedded.trace_tree import read_trace
from sparsity_router.embedded.traces import FILE_NAME, TraceReceiver, older
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, NotFoundError
from typer.testing import CliRunner

TRACE = "0af7651916cd43dd8448eb211c80319c"


def line(name: str, span: str, parent: str = "", trace_id: str = TRACE, start: int = 0, **fields: Any) -> str:
    """As a collector's file exporter writes it."""
    made = {"traceId": trace_id, "spanId": span, "parentSpanId": parent, "name": name}
    made |= {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 5_000_000)} | fields
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "router"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [made]}]}]})


def written(folder: Path, *lines: str) -> Path:
    path = folder / "spans.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_spans_become_a_tree_whatever_their_order(tmp_path: Path) -> None:
    decision = [{"key": "sparsity.decision.id", "value": {"stringValue": "decision1"}}]
    other = line("other", "9" * 16, trace_id="1" * 32)
    failed = line("engine", "3" * 16, "2" * 16, start=4, status={"code": 2, "message": "out of memory"})
    path = written(
        tmp_path, failed, other, line("dispatch", "2" * 16, "1" * 16, start=3), line("classify", "4" * 16, "1" * 16)
    )
    with open(path, "a") as file:
        file.write(line("generate", "1" * 16, "f" * 16, attributes=decision) + "\n")
    for wanted in (TRACE, TRACE[:8], "decision1"):
        (root,) = read_trace([path], wanted)
        assert root.name == "generate"
        assert root.attributes == {"sparsity.decision.id": "decision1"}
        assert [child.name for child in root.children] == ["classify", "dispatch"]
        assert [child.error for child in root.children[1].children] == ["out of memory"]
        assert root.seconds == 0.005


def test_what_cannot_be_found_or_read_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, line("a", "1" * 16), line("b", "2" * 16, trace_id=TRACE[:-1] + "0"))
    with pytest.raises(NotFoundError, match="no trace abcdef"):
        read_trace([path], "abcdef")
    with pytest.raises(InvalidRequestError, match="several traces begin so"):
        read_trace([path], TRACE[:10])
    with pytest.raises(InvalidRequestError, match="6 characters or more"):
        read_trace([path], "0af")
    with pytest.raises(ConfigurationError, match=r"spans.jsonl:1: is no line of the OTLP"):
        read_trace([written(tmp_path, "{]")], TRACE)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_trace([tmp_path / "none"], TRACE)


def test_what_a_real_exporter_sends_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_MAX_BYTES", 1000)
    path = tmp_path / FILE_NAME
    receiver = TraceReceiver(path)
    provider = TracerProvider(resource=Resource.create({"service.name": "test-service"}))
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{receiver.port}", insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    ids = []
    for number in range(3):
        with tracer.start_as_current_span("router.generate") as span:
            span.set_attributes({"sparsity.tier": "dense", "sparsity.flags": ["abuse"], "sparsity.n": number})
            span.set_attributes({"sparsity.share": 0.25, "host": "h"})
            with tracer.start_as_current_span("router.decide"):
                pass
        ids.append(trace.format_trace_id(span.get_span_context().trace_id))
    provider.shutdown()
    receiver.stop()
    assert older(path).exists(), "a full file makes way"
    (root,) = read_trace([older(path), path], ids[-1])
    assert root.service == "test-service"
    told = {"sparsity.tier": "dense", "sparsity.flags": ["abuse"], "sparsity.n": 2, "sparsity.share": 0.25, "host": "h"}
    assert root.attributes == told
    assert [child.name for child in root.children] == ["router.decide"]
    shown = CliRunner().invoke(app, ["trace", ids[-1], "--state", str(tmp_path)])
    assert shown.exit_code == 0
    assert "router.decide (test-service)" in shown.output
    assert "tier=dense, flags=abuse, n=2, share=0.25" in shown.output
    assert "host=h" not in shown.output
    document = json.loads(CliRunner().invoke(app, ["trace", ids[-1], "--state", str(tmp_path), "--json"]).output)
    assert document[0]["children"][0]["name"] == "router.decide"
    assert CliRunner().invoke(app, ["trace", ids[-1], "--state", str(tmp_path / "none")]).exit_code == 3


def test_a_receiver_takes_no_nonsense(tmp_path: Path) -> None:
    receiver = TraceReceiver(tmp_path / FILE_NAME)
    with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
        call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError):
            call(b"\xff\xff\xff", timeout=5.0)
    receiver.stop()
    assert not (tmp_path / FILE_NAME).exists()
