"""What guards judge by: the latest values of a measure, and of the measures that callers name those that they use."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

MIN_SAMPLES = 20
_SAMPLES = 200
_SECONDS = 600.0
# Callers name their metrics; a domain has few.
_METRICS_KEPT = 16


class Window:
    """The latest values, of the last ten minutes."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def add(self, value: float) -> None:
        """Takes up a value."""
        self._values.append((time.monotonic(), value))

    def mean(self, since: float = float("-inf")) -> float | None:
        """The mean of the values from ``since`` on the monotonic clock, once there are enough."""
        since = max(since, time.monotonic() - _SECONDS)
        while self._values and self._values[0][0] < since:
            self._values.popleft()
        if len(self._values) < MIN_SAMPLES:
            return None
        return sum(value for _, value in self._values) / len(self._values)


@dataclass(slots=True)
class _Metric:
    """One metric of a domain: how often it was reported, at most; when last; and its values by arm of the rollout."""

    count: int
    used_at: float
    arms: dict[str, Window] = field(default_factory=dict)


class Metrics:
    """The metrics of one domain that are reported most, however many names callers make up.

    A new name takes the place of one that nobody reports any more, else of the one that was reported least, whose count
    it goes on from: a metric that makes up more than a sixteenth of the reports is never lost
    (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005).
    """

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}

    def add(self, name: str, arm: str, value: float) -> dict[str, Window]:
        """Takes up a value, and gives the windows of its metric by arm."""
        now = time.monotonic()
        if (metric := self._metrics.get(name)) is None:
            metric = self._metrics[name] = _Metric(self._make_room(now), now)
        metric.count += 1
        metric.used_at = now
        metric.arms.setdefault(arm, Window()).add(value)
        return metric.arms

    def _make_room(self, now: float) -> int:
        """The count that a new name goes on from."""
        self._metrics = {name: metric for name, metric in self._metrics.items() if now - metric.used_at < _SECONDS}
        if len(self._metrics) < _METRICS_KEPT:
            return 0
        least = min(self._metrics, key=lambda name: (self._metrics[name].count, self._metrics[name].used_at))
        return self._metrics.pop(least).count
