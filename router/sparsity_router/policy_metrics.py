"""What an alert on policies needs: revision, age, lag, documents that could not be read, drift, dropped records."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import metrics
from opentelemetry.metrics import Observation
from sparsity.metering import Gauge, observe

from sparsity_router.policies import PolicyFollower
from sparsity_router.recorder import Recorder


def observe_policies(policies: PolicyFollower, recorder: Recorder, meter: metrics.Meter | None = None) -> None:
    """Registers the gauges; they cost nothing where no metrics are taken."""

    def gauge(name: str, unit: str, description: str, read: Callable[[], float]) -> Gauge:
        return name, unit, description, lambda: [Observation(read())]

    age = "Since the policies were last known to be current."
    unreadable, differ = "Unreadable documents.", "Documents that a store beside the folder has otherwise."
    dropped = "Records the store could not take."
    observe(
        meter or metrics.get_meter("sparsity.router"),
        [
            gauge("sparsity.policy.revision", "1", "Revision decided from.", lambda: policies.snapshot.revision),
            gauge("sparsity.policy.age", "s", age, lambda: policies.age),
            gauge("sparsity.policy.lag", "s", "Since a known change waits.", lambda: policies.lag),
            gauge("sparsity.policy.rejected", "{document}", unreadable, lambda: len(policies.snapshot.rejected)),
            gauge("sparsity.policy.drifted", "{document}", differ, lambda: len(policies.snapshot.drifted)),
            gauge("sparsity.decision_log.dropped", "{record}", dropped, lambda: recorder.dropped),
        ],
    )
