"""Moves rollouts on by themselves where their steps have pauses."""

from __future__ import annotations

import asyncio
import logging

from sparsity_policies.decisions.rollout import Action, move
from sparsity_policies.model import StoredPolicy
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConflictError, SparsityError, StoreError

from sparsity_router.following.follower import PolicyFollower

log = logging.getLogger("sparsity.router.rollouts")
ACTOR = "rollout"
_TICK_SECONDS = 0.5


def is_due(stored: StoredPolicy, now: float) -> bool:
    """Whether the present step has lasted as long as it should; any write to the policy begins it anew."""
    rollout = stored.policy.rollout
    if rollout is None or rollout.state != "active" or rollout.step >= len(rollout.pauses):
        return False
    pause = rollout.pauses[rollout.step]
    return 0 < pause <= now - stored.update_time


async def keep_moving(follower: PolicyFollower, store: PolicyStore) -> None:
    """Promotes what is due, for as long as it runs. Every router does; the etag lets one of them win."""
    told: dict[str, str] = {}
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        due = [item.stored for item in follower.snapshot.policies.values() if is_due(item.stored, follower.now())]
        problems: dict[str, str] = {}
        for stored in due:
            domain, moved = stored.policy.domain, move(stored.policy, Action.PROMOTE)
            assert moved.rollout is not None
            reason = f"the pause is over: {moved.rollout.percent} percent"
            try:
                await store.put(moved, etag=stored.etag, actor=ACTOR, reason=reason)
                log.info("rollout of %s: %s", domain, reason)
            except (ConflictError, StoreError):
                # Somebody else wrote; and the policy follower tells of an absent store.
                continue
            except SparsityError as error:
                problems[domain] = str(error)
                if told.get(domain) != problems[domain]:
                    log.error("rollout of %s cannot be moved on: %s", domain, error)
        told = problems
