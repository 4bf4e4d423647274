"""What an alert on policies needs: revision, age, lag, documents that could not be read, drift, dropped records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from sparsity import telemetry

from sparsity_router.policies import PolicyFollower
from sparsity_router.recorder import Recorder


def observe_policies(policies: PolicyFollower, recorder: Recorder, meter: metrics.Meter | None = None) -> None:
    """Registers the gauges; they cost nothing where no metrics are exported."""
    meter = meter or metrics.get_meter("sparsity.router")
    gauges: tuple[tuple[str, str, str, Callable[[], float]], ...] = (
        (telemetry.POLICY_REVISION, "1", "Revision decided from.", lambda: policies.snapshot.revision),
        (telemetry.POLICY_AGE, "s", "Since the policies were last known to be current.", lambda: policies.age),
        (telemetry.POLICY_LAG, "s", "Since a known change has waited to be taken up.", lambda: policies.lag),
        (telemetry.POLICY_REJECTED, "{document}", "Unreadable documents.", lambda: len(policies.snapshot.rejected)),
        (telemetry.POLICY_DRIFTED, "{document}", "Documents that differ.", lambda: len(policies.snapshot.drifted)),
        (telemetry.RECORDS_DROPPED, "{record}", "Records the store could not take.", lambda: recorder.dropped),
    )
    for name, unit, description, read in gauges:
        meter.create_observable_gauge(name, [_callback(read)], unit, description)


def _callback(read: Callable[[], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(read())]
