"""FleetService: what this router sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from sparsity.v1 import fleet_pb2, inference_pb2
from sparsity_policies.model import Tier
from sparsity_serving.access.access import Access
from sparsity_serving.access.principals import Role

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.replicas import Replica, Replicas
from sparsity_router.fleet.workers import State, Worker

Context = grpc.aio.ServicerContext[fleet_pb2.GetFleetRequest, fleet_pb2.GetFleetResponse]


class FleetService:
    """Tells workers, queues and routers.

    Args:
        fleets: the workers, by model.
        replicas: the routers.
        access: who may ask.
    """

    def __init__(self, fleets: Mapping[str, Fleet], replicas: Replicas, access: Access) -> None:
        self._fleets = fleets
        self._replicas = replicas
        self._access = access

    async def GetFleet(self, request: fleet_pb2.GetFleetRequest, context: Context) -> fleet_pb2.GetFleetResponse:
        """The state now."""
        self._access.authenticate(context).require(Role.VIEWER)
        response = fleet_pb2.GetFleetResponse(router_id=self._replicas.router_id)
        for model, fleet in self._fleets.items():
            response.workers.extend(_worker(worker, model) for worker in fleet.workers)
            response.tiers.extend(_tier(fleet, tier, model) for tier in Tier)
        response.routers.extend(_router(replica) for replica in await self._replicas.all())
        return response


def _tier(fleet: Fleet, tier: Tier, model: str) -> fleet_pb2.TierStatus:
    own = fleet.of(tier)
    return fleet_pb2.TierStatus(
        tier=tier.wire,
        workers=len(own),
        ready_workers=sum(worker.state_at(tier) is State.READY for worker in own),
        waiting_requests=len(fleet.queues[tier]),
        model=model,
    )


def _worker(worker: Worker, model: str) -> fleet_pb2.WorkerStatus:
    told: Any = worker.capabilities
    status = fleet_pb2.WorkerStatus(
        endpoint=worker.target,
        tier=min(worker.tiers).wire if worker.tiers else inference_pb2.TIER_UNSPECIFIED,
        state=fleet_pb2.WorkerState.Value(f"WORKER_STATE_{worker.state.name}"),
        problem=worker.problem,
        breaker=fleet_pb2.BreakerState.Value(f"BREAKER_STATE_{worker.breaker_word.upper()}"),
        requests=worker.load.requests,
        sent_requests=worker.in_flight,
        outstanding_tokens=worker.outstanding_tokens,
        kv_used_tokens=worker.load.kv_used_tokens,
        warmth=max(worker.warmth, 0.0) if told else 0.0,
        served_model=model,
    )
    if told:
        status.worker_id, status.profile, status.model = told.worker_id, told.profile, told.model
        status.backend, status.probe_density = told.backend, told.proof.density
        status.max_requests, status.kv_capacity_tokens = told.max_requests, told.kv_capacity_tokens
    for tier, own in worker.served.items():
        density, held = own.proof.density, worker.requests_at(tier)
        status.tiers.add(tier=tier.value, profile=own.profile, probe_density=density, requests=held)
    return status


def _router(replica: Replica) -> fleet_pb2.RouterStatus:
    status = fleet_pb2.RouterStatus(
        router_id=replica.router_id,
        address=replica.address,
        policy_revision=replica.revision,
        content_hash=replica.content_hash,
        problems=replica.problems,
    )
    status.policy_age.FromNanoseconds(int(replica.policy_age * 1e9))
    status.policy_lag.FromNanoseconds(int(replica.policy_lag * 1e9))
    status.heard_time.FromNanoseconds(int(replica.heard * 1e9))
    return status
