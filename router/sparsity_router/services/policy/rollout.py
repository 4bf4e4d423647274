"""Starts, promotes, pauses, resumes and aborts rollouts."""

from __future__ import annotations

from dataclasses import replace

from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.rollout import Action, move
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.documents.document import parse_policy, to_document
from sparsity_policies.model import Policy, Rollout
from sparsity_policies.threads import DRAFTS
from sparsity_policies.wire import policy_from_wire, stored_to_wire
from sparsity_rpc.errors import InvalidRequestError

from sparsity_router.services.policy.state import PolicyState


async def update_rollout(
    state: PolicyState, request: policy_pb2.UpdateRolloutRequest, actor: str
) -> policy_pb2.UpdateRolloutResponse:
    """Moves a rollout, over the etag that was read when one is given."""
    store = state.writable()
    if int(request.action) not in list(Action):
        raise InvalidRequestError.of("action", "must be START, PROMOTE, PAUSE, ABORT or RESUME")
    action = Action(request.action)
    stored = state.find(request.domain)
    fresh = None
    if request.HasField("rollout"):
        draft = policy_pb2.Policy(domain=request.domain, rollout=request.rollout)
        draft.risk = policy_pb2.RISK_LOW
        draft.bands.add(tier=1)
        asked = await DRAFTS.run(policy_from_wire, draft)
        fresh = _kept(asked.rollout, request.rollout, stored.policy.rollout)
    # Checked whole, because a rollout can be at odds with the rest of its policy.
    moved = await DRAFTS.run(_moved, stored.policy, action, fresh)
    await DRAFTS.run(state.compare, moved)
    percent = moved.rollout.percent if moved.rollout else 0
    reason = f"rollout {action.name.lower()} at {percent} percent" + (f": {request.reason}" if request.reason else "")
    etag = request.etag if request.HasField("etag") else stored.etag
    written = await store.put(moved, etag=etag, actor=actor, reason=reason)
    await state.seen(written.revision)
    return policy_pb2.UpdateRolloutResponse(policy=await DRAFTS.run(stored_to_wire, written))


def _moved(policy: Policy, action: Action, fresh: Rollout | None) -> Policy:
    return parse_policy(to_document(move(policy, action, fresh)), EDITS.check)


def _kept(fresh: Rollout | None, asked: policy_pb2.Rollout, before: Rollout | None) -> Rollout | None:
    """A rollout that holds back and sticks as the one before it did, where it says nothing of that."""
    if fresh is None or before is None:
        return fresh
    held_back = fresh.held_back if asked.HasField("held_back") else before.held_back
    return replace(fresh, held_back=held_back, sticky_by=fresh.sticky_by if asked.sticky_by else before.sticky_by)
