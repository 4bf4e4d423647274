"""Overrides: the kill switch."""

from __future__ import annotations

import dataclasses
import math
import uuid

from sparsity.v1 import policy_pb2
from sparsity_policies.model import Override, Scope
from sparsity_policies.wire import override_from_wire, override_to_wire
from sparsity_rpc.errors import InvalidRequestError, NotFoundError, OverloadedError, StoreError
from sparsity_serving.bounds import MAX_OVERRIDES, seconds_of

from sparsity_router.following.acting import KILL_SWITCH_ID
from sparsity_router.following.own import are_one
from sparsity_router.services.policy.state import PolicyState

_LONGEST = 10 * 366 * 86_400.0
# Global overrides past the most there may be, each of which lasts longer than those before it.
_LONGER = 64


async def list_overrides(
    state: PolicyState, request: policy_pb2.ListOverridesRequest, actor: str
) -> policy_pb2.ListOverridesResponse:
    """The overrides that act on this router now."""
    now = state.follower.now()
    active = [o for o in state.follower.snapshot.overrides if o.expire_time is None or o.expire_time > now]
    ordered = sorted(active, key=lambda override: override.id)
    return policy_pb2.ListOverridesResponse(overrides=[override_to_wire(override) for override in ordered])


async def put_override(
    state: PolicyState, request: policy_pb2.PutOverrideRequest, actor: str
) -> policy_pb2.PutOverrideResponse:
    """Sets an override: here at once, and in the store when it can be reached, or as soon as it can."""
    if not request.override.reason:
        raise InvalidRequestError.of("override.reason", "is empty; say why, for those who find the switch thrown")
    if request.override.id == KILL_SWITCH_ID:
        # It would take the place of a switch that was thrown there, and no store would get it.
        problem = f"{KILL_SWITCH_ID} is the id of the switch that a process has by SIGUSR1; choose another"
        raise InvalidRequestError.of("override.id", problem)
    now = state.follower.now()
    fresh = override_from_wire(request.override, uuid.uuid4().hex[:8], now)
    override = dataclasses.replace(fresh, actor=actor)
    if request.HasField("ttl"):
        seconds = seconds_of("ttl", request.ttl)
        if not 0 < seconds <= _LONGEST or request.override.HasField("expire_time"):
            problem = "must be more than 0 seconds and ten years at most, without override.expire_time"
            raise InvalidRequestError.of("ttl", problem)
        override = dataclasses.replace(override, expire_time=now + seconds)
    overrides = state.follower.overrides
    _require_room(state, override, now)
    overrides.put(override)
    stored = state.store is not None and await overrides.write(state.store, override)
    return policy_pb2.PutOverrideResponse(override=override_to_wire(override), stored=stored)


def _require_room(state: PolicyState, override: Override, now: float) -> None:
    """Refuses one more than decisions have time for; the kill switch of everything always has its place, once."""
    acting = [known for known in state.follower.overrides.active() if _ends(known) > now]
    if len(acting) < MAX_OVERRIDES or any(known.id == override.id for known in acting):
        return
    if override.scope is Scope.GLOBAL:
        as_dense = [known for known in acting if known.scope is Scope.GLOBAL and known.max_tier <= override.max_tier]
        lasts = max(map(_ends, as_dense), default=0.0)
        if not as_dense or (len(acting) < MAX_OVERRIDES + _LONGER and lasts < _ends(override)):
            return
    remedy = "end some, set one of a wider scope, or write it into a policy"
    full = OverloadedError(f"{len(acting)} overrides are in force, and {MAX_OVERRIDES} the most: {remedy}")
    raise full.about({"limit": f"{MAX_OVERRIDES} overrides"})


def _ends(override: Override) -> float:
    return math.inf if override.expire_time is None else override.expire_time


async def delete_override(
    state: PolicyState, request: policy_pb2.DeleteOverrideRequest, actor: str
) -> policy_pb2.DeleteOverrideResponse:
    """Ends an override: in the store first, so that no replica keeps what another has ended."""
    overrides = state.follower.overrides
    own = overrides.own(request.id)
    acts = request.id != KILL_SWITCH_ID and any(known.id == request.id for known in overrides.active())
    try:
        if state.store is None:
            raise NotFoundError(f"override {request.id!r} does not exist")
        # Where the store has lost one that acts, the other routers that hold it are told of the end.
        revision = await state.store.delete_override(request.id, anyway=acts)
    except NotFoundError:
        # One that was set while the store was asked is another.
        if not are_one(overrides.own(request.id), own) or not overrides.end(request.id):
            raise
    except StoreError:
        # One that was set here while the store was away, or by signal, never reached it; another may be there.
        if own is None or not are_one(overrides.own(request.id), own) or overrides.is_in_store(request.id):
            raise
        overrides.end(request.id, 0)
    else:
        if are_one(overrides.own(request.id), own):
            overrides.end(request.id, revision)
        else:
            overrides.end_stored(request.id, revision)
    return policy_pb2.DeleteOverrideResponse()
