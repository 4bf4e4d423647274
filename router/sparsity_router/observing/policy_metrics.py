"""What an alert on policies needs: revision, age, lag, unreadable documents, drift, lost records; and the loop."""

from __future__ import annotations

from opentelemetry import metrics
from sparsity_serving.metrics.metering import meter_of, observe, scalar
from sparsity_serving.watchdog import Watchdog

from sparsity_router.following.follower import PolicyFollower
from sparsity_router.observing.recorder import Recorder


def observe_loop(watchdog: Watchdog, meter: metrics.Meter | None = None) -> None:
    """Registers how the event loop does; it is read on another thread, also while the loop stands still."""
    stalled, stalls = "Since the event loop last ran, while it stands still.", "Times it stood still for a second."
    observe(
        meter or meter_of("sparsity.router"),
        [("sparsity.router.loop.stalled", "s", stalled, scalar(lambda: watchdog.stalled))],
        [("sparsity.router.loop.stalls", "{stall}", stalls, scalar(lambda: watchdog.stalls))],
    )


def observe_disk(follower: PolicyFollower, meter: metrics.Meter | None = None) -> None:
    """Registers whether the last policies lie where a restart without the store would look for them."""
    unsaved = "1 while policies cannot be written to the disk."
    made = meter or meter_of("sparsity.router")
    observe(made, [("sparsity.policy.unsaved", "1", unsaved, scalar(lambda: int(bool(follower.unsaved))))])


def observe_policies(follower: PolicyFollower, recorder: Recorder, meter: metrics.Meter | None = None) -> None:
    """Registers what is read when metrics are taken; it costs nothing where none are."""
    age = "Since the policies were last known to be current."
    unreadable, differ = (
        "Documents that cannot be read or taken up.",
        "Documents that a store beside the folder has otherwise.",
    )
    dropped = "Records the store could not take."
    observe(
        meter or meter_of("sparsity.router"),
        [
            ("sparsity.policy.revision", "1", "Revision decided from.", scalar(lambda: follower.snapshot.revision)),
            ("sparsity.policy.age", "s", age, scalar(lambda: follower.age)),
            ("sparsity.policy.lag", "s", "Since a known change waits.", scalar(lambda: follower.lag)),
            ("sparsity.policy.rejected", "{document}", unreadable, scalar(lambda: len(follower.snapshot.rejected))),
            ("sparsity.policy.drifted", "{document}", differ, scalar(lambda: len(follower.snapshot.drifted))),
        ],
        [("sparsity.decision_log.dropped", "{record}", dropped, scalar(lambda: recorder.dropped))],
    )
