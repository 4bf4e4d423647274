"""Revisions of a policy, and rolling back to one (AIP-162)."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence

from sparsity.v1 import policy_pb2
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.model import StoredPolicy
from sparsity_policies.threads import DRAFTS
from sparsity_policies.wire import stored_to_wire
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import page_size

from sparsity_router.services.policy.state import PolicyState

_PAGE = 100
_TOKEN = re.compile("[0-9]{1,19}")


async def list_policy_revisions(
    state: PolicyState, request: policy_pb2.ListPolicyRevisionsRequest, actor: str
) -> policy_pb2.ListPolicyRevisionsResponse:
    """Revisions of a policy, newest first; the page token is the last revision of the page before."""
    below = None
    if request.page_token:
        below = int(request.page_token) if _TOKEN.fullmatch(request.page_token) else None
        if below is None or below >= 2**63:
            problem = f"is not one of this service: {reprlib.repr(request.page_token)}"
            raise InvalidRequestError.of("page_token", problem)
    size = page_size(request.page_size, _PAGE)
    page = await state.need_store().history(request.domain, below, size)
    if not page.revisions and below is None:
        # Tells a domain that never was from one without history, such as one of a policy folder.
        state.find(request.domain)
    return policy_pb2.ListPolicyRevisionsResponse(
        revisions=await DRAFTS.run(_to_wire, page.revisions),
        next_page_token=str(page.below) if page.below else "",
    )


def _to_wire(revisions: Sequence[StoredPolicy]) -> list[policy_pb2.StoredPolicy]:
    return [stored_to_wire(stored) for stored in revisions]


async def rollback_policy(
    state: PolicyState, request: policy_pb2.RollbackPolicyRequest, actor: str
) -> policy_pb2.RollbackPolicyResponse:
    """Writes an old revision's document as a new revision."""
    store = state.writable()
    old = await store.revision(request.domain, request.to_revision)
    # What was taken once need not be now, and other domains have changed.
    if violations := await DRAFTS.run(EDITS.check, old.policy):
        raise InvalidRequestError(*violations)
    await DRAFTS.run(state.check, old.policy)
    reason = f"rollback to revision {request.to_revision}" + (f": {request.reason}" if request.reason else "")
    stored = await store.put(old.policy, etag=None, actor=actor, reason=reason)
    await state.seen(stored.revision)
    return policy_pb2.RollbackPolicyResponse(policy=await DRAFTS.run(stored_to_wire, stored))
