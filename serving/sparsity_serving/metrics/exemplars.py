"""Exemplars on the Prometheus endpoint: a bucket of a histogram names a trace that fell into it.

OpenTelemetry's SDK keeps exemplars of sampled spans, and its Prometheus exporter leaves them out; here they are put
back. Prometheus reads them in the OpenMetrics format, with `--enable-feature=exemplar-storage`
(https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import Histogram, MetricsData
from prometheus_client import Metric
from prometheus_client.core import Exemplar, Sample
from prometheus_client.registry import Collector, CollectorRegistry

_UNITS: Final = ("", "_seconds")
_Labels = frozenset[tuple[str, str]]


class ExemplarCollector(Collector):
    """What the exporter collects into a registry of its own, with exemplars."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.reader = _Reader(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        for family in list(self._registry.collect()):
            if found := self.reader.seen.get(family.name):
                family.samples = list(_with_exemplars(family.samples, found))
            yield family


class _Reader(PrometheusMetricReader):
    """Also notes each histogram's exemplars, by the family's name and the series' labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seen: dict[str, Mapping[_Labels, Sequence[Any]]] = {}
        super().__init__(scope_info_enabled=False, registry=registry)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self.seen = {}
        for resource in metrics_data.resource_metrics if metrics_data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if isinstance(metric.data, Histogram):
                        points = {
                            _labels(each.attributes or {}): list(each.exemplars) for each in metric.data.data_points
                        }
                        self.seen |= {f"{_plain(metric.name)}{unit}": points for unit in _UNITS}
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


def _with_exemplars(samples: Iterable[Sample], found: Mapping[_Labels, Sequence[Any]]) -> Iterator[Sample]:
    """The samples of a family, whose buckets come in their order, each with the last exemplar that fell into it."""
    reached: dict[_Labels, float] = {}
    for sample in samples:
        if not sample.name.endswith("_bucket"):
            yield sample
            continue
        labels = dict(sample.labels)
        most = float(labels.pop("le"))
        # The exporter gives each series all labels of its family.
        series = frozenset((name, value) for name, value in labels.items() if value)
        least, reached[series] = reached.get(series, float("-inf")), most
        inside = [each for each in found.get(series, ()) if least < each.value <= most]
        yield sample._replace(exemplar=_exemplar(inside[-1])) if inside else sample


def _exemplar(seen: Any) -> Exemplar:
    ids = {"trace_id": trace.format_trace_id(seen.trace_id), "span_id": trace.format_span_id(seen.span_id)}
    return Exemplar(ids, seen.value, seen.time_unix_nano / 1e9)


def _labels(attributes: Mapping[str, Any]) -> _Labels:
    return frozenset((_plain(name), str(value)) for name, value in attributes.items() if value != "")


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
