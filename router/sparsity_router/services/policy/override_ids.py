"""The kill switch under ids that are left to callers: those of guards are nobody else's."""

from __future__ import annotations

from sparsity.v1 import policy_pb2
from sparsity_rpc.errors import InvalidRequestError

from sparsity_router.following.guards import ID_PREFIX
from sparsity_router.services.policy import kill_switch
from sparsity_router.services.policy.state import PolicyState


async def put_override(
    state: PolicyState, request: policy_pb2.PutOverrideRequest, actor: str
) -> policy_pb2.PutOverrideResponse:
    """Sets an override, unless its id is one that guards give.

    Raises:
        InvalidRequestError: naming the field.
    """
    if request.override.id.startswith(ID_PREFIX):
        # A broken guard would take its place, or take it for the guard's own cap.
        problem = f"begins with {ID_PREFIX}, as those that guards set; choose another"
        raise InvalidRequestError.of("override.id", problem)
    return await kill_switch.put_override(state, request, actor)
