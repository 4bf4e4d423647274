"""Logs: lines for people, or one JSON object each, with the ids of the trace that a line belongs to."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from opentelemetry import trace
from sparsity_rpc.errors import ConfigurationError

FORMAT_VARIABLE: Final = "SPARSITY_LOG_FORMAT"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# OpenTelemetry's names in logs that are no OTLP.
_TRACE_ID, _SPAN_ID = "trace_id", "span_id"


def configure_logs(logger: logging.Logger) -> None:
    """Gives ``logger`` a handler on stderr in the format of SPARSITY_LOG_FORMAT: `text`, the default, or `json`.

    Raises:
        ConfigurationError: for another one.
    """
    kind = os.environ.get(FORMAT_VARIABLE) or "text"
    if kind not in ("text", "json"):
        raise ConfigurationError(f"{FORMAT_VARIABLE}: must be text or json, not {kind!r}")
    handler = logging.StreamHandler()
    handler.addFilter(_add_trace)
    handler.setFormatter(_json() if kind == "json" else logging.Formatter(_TEXT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _add_trace(record: logging.LogRecord) -> bool:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        setattr(record, _TRACE_ID, trace.format_trace_id(context.trace_id))
        setattr(record, _SPAN_ID, trace.format_span_id(context.span_id))
    return True


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    class Formatter(JsonFormatter):
        def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
            super().add_fields(log_data, record, message_dict)
            log_data["level"] = record.levelname.lower()

    return Formatter("{message}{name}", style="{", timestamp=True, rename_fields={"name": "logger"})
