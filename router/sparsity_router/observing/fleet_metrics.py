"""Gauges of the fleet as one router sees it: workers by state, queues, what is in flight, breakers, retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import Observation
from sparsity_policies.model import Tier
from sparsity_rpc import semconv
from sparsity_serving import telemetry
from sparsity_serving.metrics.metering import meter_of, observe

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.workers import State, Worker

_MODEL, _STATE = semconv.GEN_AI_REQUEST_MODEL, "sparsity.worker.state"


def observe_fleets(fleets: Mapping[str, Fleet], meter: metrics.Meter | None = None) -> None:
    """Registers the gauges of the workers of each model; they cost nothing where no metrics are taken."""

    def states() -> Iterator[Observation]:
        for model, fleet in fleets.items():
            workers, own = list(fleet.workers), {_MODEL: model}
            found = Counter((tier, worker.state_at(tier)) for worker in workers for tier in worker.served)
            # Every state of every tier, so that an alert sees a tier that nobody serves any more as 0.
            for tier in Tier:
                for state in State:
                    yield Observation(
                        found[tier, state], {**own, telemetry.TIER: tier.word, _STATE: state.name.lower()}
                    )
            if unknown := sum(not worker.served for worker in workers):
                yield Observation(unknown, {**own, telemetry.TIER: "", _STATE: State.UNREACHABLE.name.lower()})

    def queues() -> Iterator[Observation]:
        for model, fleet in fleets.items():
            for tier, queue in fleet.queues.items():
                yield Observation(len(queue), {_MODEL: model, telemetry.TIER: tier.word})

    def retries() -> Iterator[Observation]:
        for model, fleet in fleets.items():
            yield Observation(fleet.retries.spent, {_MODEL: model})

    def at_each_tier(measured: Callable[[Worker, Tier], float]) -> Callable[[], Iterator[Observation]]:
        def observed() -> Iterator[Observation]:
            for model, fleet in fleets.items():
                for worker in list(fleet.workers):
                    own = {_MODEL: model, telemetry.WORKER_ID: worker.name}
                    for tier in worker.served:
                        yield Observation(measured(worker, tier), {**own, telemetry.TIER: tier.word})

        return observed

    in_flight = at_each_tier(lambda worker, tier: worker.in_flight_at(tier))
    kv_use = at_each_tier(lambda worker, _: worker.kv_use)
    breakers = at_each_tier(lambda worker, tier: int(worker.breakers[tier].word != "closed"))
    meter = meter or meter_of("sparsity.router")
    again = "Requests sent once more, to a peer or as a hedge."
    observe(
        meter,
        [
            ("sparsity.router.workers", "{worker}", "Workers by tier, at each that they serve, and state.", states),
            ("sparsity.router.waiting", "{request}", "Requests in the queue of a tier.", queues),
            ("sparsity.router.in_flight", "{request}", "Requests this router has at a worker, by tier.", in_flight),
            ("sparsity.router.kv_use", "1", "Share of a worker's KV cache that live requests hold.", kv_use),
            (
                "sparsity.router.breaker.open",
                "1",
                "1 where a worker's breaker is open or half open, by tier.",
                breakers,
            ),
        ],
        [("sparsity.router.retries", "{request}", again, retries)],
    )
