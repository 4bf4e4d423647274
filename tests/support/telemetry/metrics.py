"""Metrics kept in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

Values = dict[str, list[tuple[dict[str, Any], Any]]]


class Meter:
    """A meter, and what was told to it."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.meter = MeterProvider(metric_readers=[self._reader]).get_meter("test")

    def values(self) -> Values:
        """Attributes and value of each point, by metric; a histogram's value is its sum."""
        data = self._reader.get_metrics_data()
        found: Values = {}
        if data is None:
            return found
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                value = point.value if hasattr(point, "value") else point.sum
                found.setdefault(metric.name, []).append((dict(point.attributes or {}), value))
        return found
