"""Watches the guards of policies on live traffic, and steps in when one is broken.

Coverage comes from the sparsity report of every completion this router relays; quality from outcomes that callers
report, the rolled-out side of a rollout against the side that is held back. A broken guard halts the domain's rollout,
or, where none is under way, caps the domain one tier denser for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from itertools import count, islice
from typing import Any, Final

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.journal import Outcome
from sparsity_policies.decisions.rollout import HELD_BACK, ROLLED_OUT, halt
from sparsity_policies.model import Override, Policy, Rollout, Scope, Tier
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConflictError, StoreError

from sparsity_router.following import rollouts
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.windows import Metrics, Window

log = logging.getLogger("sparsity.router.guards")
ACTOR = "guard"
ID_PREFIX: Final = "guard-"
"""Of the ids of overrides that guards set, and nobody else."""
_DEMOTION_SECONDS = 3600.0
_OUTCOME_WAIT_SECONDS = 1.0
# Ids of caps that are asked whether one was ended; no more stand in a store by the hands of others.
_IDS_LOOKED_AT = 8


def override_id(domain: str) -> str:
    """The override by which a broken guard caps a domain, unless somebody else's stands there."""
    return f"{ID_PREFIX}{domain}"


def override_ids(domain: str) -> Iterator[str]:
    """Ids for the cap of a domain, the first one first; names of domains have no dot, so that no two share one."""
    yield override_id(domain)
    for number in count(2):
        yield f"{override_id(domain)}.{number}"


def capped(follower: PolicyFollower, domain: str) -> Override | None:
    """The override by which a broken guard caps a domain now; an operator's is none, whatever its id."""
    caps = (override for override in _acting(follower) if _is_cap(override, domain))
    return min(caps, key=lambda override: override.max_tier, default=None)


def _acting(follower: PolicyFollower) -> Iterator[Override]:
    now = follower.now()
    return (o for o in follower.overrides.active() if o.expire_time is None or o.expire_time > now)


def _is_cap(override: Override, domain: str) -> bool:
    acts_on = (override.scope, override.target)
    return override.id.startswith(ID_PREFIX) and override.actor == ACTOR and acts_on == (Scope.DOMAIN, domain)


def _free_id(follower: PolicyFollower, domain: str) -> str:
    """The first id of a domain's cap at which nobody else's override stands: it would be gone for everybody."""
    taken = {override.id for override in _acting(follower) if not _is_cap(override, domain)}
    return next(name for name in override_ids(domain) if name not in taken)


class GuardMonitor:
    """The guards of all domains on one router.

    Args:
        follower: of the policies to guard.
        store: where to halt rollouts and set caps; None caps on this router only.
    """

    def __init__(self, follower: PolicyFollower, store: PolicyStore | None) -> None:
        self._follower = follower
        self._store = store
        self._coverage: dict[tuple[str, Tier, str], Window] = {}
        self._scores: dict[str, Metrics] = {}
        self._changes: dict[str, tuple[str, float]] = {}
        self._acting: dict[str, asyncio.Task[None]] = {}

    def coverage(self, domain: str, tier: Tier, report: inference_pb2.SparsityReport) -> None:
        """Takes up the coverage of one sparse answer: as estimated, and by itself as measured, where it was."""
        self._covered(domain, tier, "coverage", report.coverage)
        if report.HasField("measured_coverage"):
            self._covered(domain, tier, "measured coverage", report.measured_coverage)

    def _covered(self, domain: str, tier: Tier, kind: str, value: float) -> None:
        policy = self._follower.snapshot.policy(domain)
        if policy is None or policy.guards.min_coverage is None or tier is Tier.DENSE:
            return
        rollout, since = policy.rollout, self._since(domain)
        if rollout is not None and rollout.halted and tier > rollout.held_back:
            return
        window = self._coverage.setdefault((domain, tier, kind), Window())
        window.add(value)
        mean = window.mean(since)
        if mean is not None and mean < policy.guards.min_coverage:
            what = f"{kind} {mean:.3f} of {tier.word} is below the guard {policy.guards.min_coverage:g}"
            self._act(domain, self._step_in(domain, tier, what))

    def outcome(self, outcome: Outcome) -> None:
        """Takes up the quality of one answer."""
        policy = self._follower.snapshot.policy(outcome.domain)
        if policy is None or policy.guards.max_quality_dip is None or not outcome.arm:
            return
        if policy.guards.quality_metric not in ("", outcome.metric):
            return
        since = self._since(outcome.domain)
        if policy.rollout is not None and policy.rollout.halted:
            # Of answers that were under way when it was halted.
            return
        windows = self._scores.setdefault(outcome.domain, Metrics()).add(outcome.metric, outcome.arm, outcome.score)
        means = {arm: windows[arm].mean(since) for arm in (ROLLED_OUT, HELD_BACK) if arm in windows}
        rolled, held = means.get(ROLLED_OUT), means.get(HELD_BACK)
        if rolled is None or held is None or held - rolled <= policy.guards.max_quality_dip:
            return
        dip = f"{outcome.metric} {rolled:.3f} rolled out against {held:.3f} held back"
        what = f"{dip} is a dip above the guard {policy.guards.max_quality_dip:g}"
        self._act(outcome.domain, self._step_in(outcome.domain, outcome.tier, what))

    async def follow_outcomes(self, decisions: DecisionLog) -> None:
        """Takes up outcomes that any router was told of, for as long as it runs."""
        place = "$"
        while True:
            try:
                place, found = await decisions.outcomes(place, _OUTCOME_WAIT_SECONDS)
                for outcome in found:
                    self.outcome(outcome)
            except StoreError:
                # The policy follower tells of an absent store.
                await asyncio.sleep(_OUTCOME_WAIT_SECONDS)

    def _act(self, domain: str, action: Coroutine[Any, Any, None]) -> None:
        running = self._acting.get(domain)
        if running is not None and not running.done():
            action.close()
            return
        self._acting[domain] = asyncio.get_running_loop().create_task(action)

    def _since(self, domain: str) -> float:
        """From when on samples count: an operator who ends a guard's cap, or writes the policy anew as for a halted
        rollout that goes on, has seen those before."""
        stored = self._follower.snapshot.policies[domain].stored
        etag, changed_at = self._changes.get(domain, (stored.etag, float("-inf")))
        if etag != stored.etag and stored.actor not in (ACTOR, rollouts.ACTOR):
            changed_at = time.monotonic()
        self._changes[domain] = stored.etag, changed_at
        ends = map(self._follower.overrides.ended_at, islice(override_ids(domain), _IDS_LOOKED_AT))
        return max(*ends, changed_at)

    def _forget(self, domain: str) -> None:
        self._coverage = {key: window for key, window in self._coverage.items() if key[0] != domain}
        self._scores.pop(domain, None)

    async def _step_in(self, domain: str, tier: Tier, what: str) -> None:
        self._forget(domain)
        policy = self._follower.snapshot.policy(domain)
        if policy is None:
            return
        rollout = policy.rollout
        if self._store and rollout and not rollout.halted and await self._halt(policy, rollout, what):
            return
        cap = Tier(max(tier - 1, Tier.DENSE))
        if (there := capped(self._follower, domain)) is not None and there.max_tier <= cap:
            return
        expires = self._follower.now() + _DEMOTION_SECONDS
        name = there.id if there is not None else _free_id(self._follower, domain)
        override = Override(name, Scope.DOMAIN, domain, cap, expires, what, ACTOR)
        log.error("guard of %s: %s; capped at %s for %.0f s", domain, what, cap.word, _DEMOTION_SECONDS)
        self._follower.overrides.put(override)
        if self._store is not None:
            # It acts here, and is delivered once the store is back, where it is away.
            await self._follower.overrides.write(self._store, override)

    async def _halt(self, policy: Policy, rollout: Rollout, what: str) -> bool:
        """Halts a rollout; False when the store cannot be told, or does not take the document."""
        assert self._store is not None
        stored = self._follower.snapshot.policies[policy.domain].stored
        reason = f"halted at {rollout.percent} percent: {what}"
        try:
            await self._store.put(halt(policy, what), etag=stored.etag, actor=ACTOR, reason=reason)
        except ConflictError:
            # Somebody else wrote, perhaps another router's guard; what is there now is judged anew.
            return True
        except Exception as error:  # whatever it is, the domain is capped
            log.error("guard of %s: its rollout cannot be halted: %s", policy.domain, error)
            return False
        log.error("guard of %s: %s; its rollout is halted", policy.domain, what)
        return True
