"""Whether a router wants traffic: it does while it could serve a request.

One whose store is away goes on from its last snapshot, and past its time to live everything is dense; one that cannot
take up a change it knows of wants none, because its peers have taken it up. Without a dense worker it still serves what
policy lets go to sparser ones: all routers would fall out at once, and take that traffic with them. So it is with
models: the others' requests are served on while one has no worker. At the start, when workers may only not have been
heard yet, it waits for a dense one of each model a little longer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final

from sparsity_policies.model import Scope, Tier
from sparsity_serving.health import Health

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.workers import State
from sparsity_router.following.follower import PolicyFollower

log = logging.getLogger("sparsity.router.readiness")
_LOOK_SECONDS = 0.25
# A worker that holds as many requests as it takes serves the next one in a moment.
_SERVES: Final = frozenset({State.READY, State.FULL})


class Readiness:
    """Looks, and tells the health service.

    Args:
        follower: of the policies that are decided from.
        fleets: who may serve it, by model.
        max_lag: time that a known change may wait, seconds.
        patience: how long workers may be away before that counts, and how long a dense one is waited for at the start.
    """

    def __init__(self, follower: PolicyFollower, fleets: Mapping[str, Fleet], max_lag: float, patience: float) -> None:
        self._follower = follower
        self._fleets = fleets
        self._max_lag = max_lag
        self._patience = patience
        self._since = time.monotonic()
        # When a request could last have been served.
        self._served_at = float("-inf")

    def problem(self) -> str:
        """What keeps traffic away; empty while it is wanted."""
        if self._follower.waits > self._max_lag:
            return f"a policy change has waited {self._follower.lag:.0f} s to be taken up"
        now, missing = time.monotonic(), self._missing()
        if not missing:
            self._served_at = now
        return missing if now - self._served_at > self._patience else ""

    def _missing(self) -> str:
        """Whom no request could be served without."""
        begins = self._served_at == float("-inf") and time.monotonic() - self._since < self._patience
        missing = {model: self._missing_of(fleet, begins=begins) for model, fleet in self._fleets.items()}
        told = [f"{model}: {what}" if len(missing) > 1 else what for model, what in missing.items() if what]
        return "; ".join(told) if begins or len(told) == len(missing) else ""

    def _missing_of(self, fleet: Fleet, *, begins: bool) -> str:
        """Whom no request to one model could be served without."""
        there = {tier for worker in fleet.workers for tier in worker.trusted if worker.state_at(tier) in _SERVES}
        if Tier.DENSE in there:
            return ""
        if not there:
            return "no worker can be used"
        if self._all_dense():
            return "everything is held dense, and no dense worker can be used"
        return "no dense worker has been heard yet" if begins else ""

    def _all_dense(self) -> bool:
        follower, now = self._follower, self._follower.now()
        switches = (o for o in follower.snapshot.overrides if o.scope is Scope.GLOBAL and o.max_tier is Tier.DENSE)
        acting = any(override.expire_time is None or override.expire_time > now for override in switches)
        return acting or follower.age > follower.snapshot.ttl

    async def tell(self, health: Health) -> None:
        """Keeps ``health`` true, for as long as it runs."""
        ready: bool | None = None
        while True:
            problem = self.problem()
            if (now := not problem) is not ready:
                await health.tell(now)
                if problem:
                    log.error("not ready: %s", problem)
                else:
                    log.info("ready")
                ready = now
            await asyncio.sleep(_LOOK_SECONDS)
