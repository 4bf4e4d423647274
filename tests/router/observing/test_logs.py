from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision, Reason, Signals, Tier
from sparsity_router.observing import observer
from sparsity_router.observing.observer import EndedRequest
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.logs import FORMAT_VARIABLE, configure_logs
from sparsity_serving.metrics.metering import Times


@pytest.fixture
def logger() -> Any:
    """A logger of the test's own, whose handlers go with it."""
    made = logging.getLogger("sparsity.router.requests")
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)


def told(capsys: Any) -> list[str]:
    return str(capsys.readouterr().err).splitlines()


def test_a_line_of_json_bears_trace_and_fields(logger: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    configure_logs(logger)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        logger.info("answered by %s", "w1", extra={"tier": "dense"})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in told(capsys))
    context = span.get_span_context()
    assert first["trace_id"] == trace.format_trace_id(context.trace_id)
    assert first["span_id"] == trace.format_span_id(context.span_id)
    expected = {"message": "answered by w1", "level": "info", "logger": logger.name, "tier": "dense"}
    assert expected.items() <= first.items()
    assert first["timestamp"].endswith("+00:00")
    assert "ValueError: no" in second["exc_info"]
    assert "trace_id" not in second


def test_text_is_for_people(logger: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    configure_logs(logger)
    logger.warning("so it is")
    assert told(capsys)[0].endswith(f"WARNING {logger.name}: so it is")


def test_another_format_is_refused(logger: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    with pytest.raises(ConfigurationError, match="SPARSITY_LOG_FORMAT: must be text or json, not 'xml'"):
        configure_logs(logger)


def test_a_request_is_logged_without_its_text(logger: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    configure_logs(logger)
    usage = inference_pb2.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=2)
    completion = inference_pb2.Completion(worker_id="w1", usage=usage)
    decision = Decision(Tier.DENSE, Reason.FLAGGED, "", "medical", 7, Tier.DENSE, "flagged")
    observer._log(EndedRequest("d1", Signals(9, 9), decision, decision, completion, Times(0.5, 1.5), "job-7"))
    observer._log(EndedRequest("d2", Signals(9, 9), decision))
    answered, refused = (json.loads(line) for line in told(capsys))
    expected = {"decision_id": "d1", "policy": "medical", "policy_revision": 7, "tier": "dense", "reason": "FLAGGED"}
    expected |= {"request_id": "job-7", "worker": "w1", "prompt_tokens": 9, "cached_tokens": 4, "new_tokens": 2}
    assert (expected | {"first_token_seconds": 0.5, "seconds": 1.5}).items() <= answered.items()
    assert refused["tier"] == "none"
    assert "worker" not in refused
