"""Gauges of the fleet as one router sees it: workers by state, queues, what is in flight, breakers, retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from opentelemetry import metrics
from opentelemetry.metrics import Observation
from sparsity_policies.model import Tier
from sparsity_serving import telemetry
from sparsity_serving.metrics.metering import observe, scalar

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.workers import State, Worker

_STATE = "sparsity.worker.state"


def observe_fleet(fleet: Fleet, meter: metrics.Meter | None = None) -> None:
    """Registers the gauges; they cost nothing where no metrics are taken."""

    def states() -> Iterator[Observation]:
        found = Counter((_tier(worker), worker.state) for worker in list(fleet.workers))
        # Every state of every tier, so that an alert sees a pool that is gone as 0.
        for tier in Tier:
            for state in State:
                yield Observation(found[tier.word, state], {telemetry.TIER: tier.word, _STATE: state.name.lower()})
        if unknown := sum(count for (tier, _), count in found.items() if not tier):
            yield Observation(unknown, {telemetry.TIER: "", _STATE: State.UNREACHABLE.name.lower()})

    def queues() -> Iterator[Observation]:
        for tier, queue in fleet.queues.items():
            yield Observation(len(queue), {telemetry.TIER: tier.word})

    def in_flight() -> Iterator[Observation]:
        for worker in list(fleet.workers):
            yield Observation(worker.in_flight, _of(worker))

    def kv_use() -> Iterator[Observation]:
        for worker in list(fleet.workers):
            yield Observation(worker.kv_use, _of(worker))

    def breakers() -> Iterator[Observation]:
        for worker in list(fleet.workers):
            yield Observation(int(worker.breaker.word != "closed"), _of(worker))

    meter = meter or metrics.get_meter("sparsity.router")
    again = "Requests sent once more, to a peer or as a hedge."
    observe(
        meter,
        [
            ("sparsity.router.workers", "{worker}", "Workers by tier and state.", states),
            ("sparsity.router.waiting", "{request}", "Requests in the queue of a tier.", queues),
            ("sparsity.router.in_flight", "{request}", "Requests this router has at a worker.", in_flight),
            ("sparsity.router.kv_use", "1", "Share of a worker's KV cache that live requests hold.", kv_use),
            ("sparsity.router.breaker.open", "1", "1 where a worker's breaker is open or half open.", breakers),
        ],
        [("sparsity.router.retries", "{request}", again, scalar(lambda: fleet.retries.spent))],
    )


def _tier(worker: Worker) -> str:
    return worker.tier.word if worker.tier else ""


def _of(worker: Worker) -> dict[str, str]:
    return {telemetry.WORKER_ID: worker.name, telemetry.TIER: _tier(worker)}
