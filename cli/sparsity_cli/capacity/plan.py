"""Workers for a load in three ways: all of it dense, a pool a tier, and workers that serve every tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_rpc.tiers import Tier

from sparsity_cli.capacity.queueing import workers_for


@dataclass(frozen=True, slots=True)
class Worker:
    """What is taken for granted of every worker.

    Attributes:
        places: requests that it serves at once.
        share: of the requests of a pool that may wait for a place.
        spare: workers of each pool that may be away, in a rollout or by a fault.
    """

    places: int = 32
    share: float = 0.1
    spare: int = 1

    def pool(self, load: float) -> int:
        """Workers of one pool; none where nothing comes."""
        workers = workers_for(load, self.places, self.share)
        return workers + self.spare if workers else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Workers for one load.

    Attributes:
        load: how many dense workers it would keep busy without a pause.
        dense: workers, where every request is dense.
        pools: by tier, where each tier has workers of its own.
        shared: workers, where each serves every tier.
    """

    load: float
    dense: int
    pools: Mapping[Tier, int]
    shared: int


def plan(
    load: float, mix: Mapping[Tier, float], work: Mapping[Tier, float], shared: Mapping[Tier, float], worker: Worker
) -> Plan:
    """Workers for a load.

    Args:
        load: how many dense workers it would keep busy, if all of it were dense.
        mix: share of the requests by tier; they add up to 1.
        work: of a request at a tier, over the same one's in a dense worker.
        shared: likewise, in a worker of every tier.
        worker: what is taken for granted of every worker.
    """
    by_tier = {tier: load * mix[tier] * work[tier] for tier in mix}
    pools = {tier: worker.pool(part) for tier, part in by_tier.items()}
    return Plan(load, worker.pool(load), pools, worker.pool(load * sum(mix[tier] * shared[tier] for tier in mix)))
