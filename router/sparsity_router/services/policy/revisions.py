"""Revisions of a policy, and rolling back to one (AIP-162)."""

from __future__ import annotations

from sparsity.v1 import policy_pb2
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.threads import DRAFTS
from sparsity_policies.wire import stored_to_wire
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import page_size

from sparsity_router.services.policy.state import PolicyState

_PAGE = 100


async def list_policy_revisions(
    state: PolicyState, request: policy_pb2.ListPolicyRevisionsRequest, actor: str
) -> policy_pb2.ListPolicyRevisionsResponse:
    """Revisions of a policy, newest first; the page token is the last revision of the page before."""
    if request.page_token and not request.page_token.isdigit():
        raise InvalidRequestError.of("page_token", f"is not one of this service: {request.page_token!r}")
    size = page_size(request.page_size, _PAGE)
    below = int(request.page_token) if request.page_token else None
    page = await state.need_store().history(request.domain, below, size)
    if not page.revisions and below is None:
        # Tells a domain that never was from one without history, such as one of a policy folder.
        state.find(request.domain)
    return policy_pb2.ListPolicyRevisionsResponse(
        revisions=[stored_to_wire(stored) for stored in page.revisions],
        next_page_token=str(page.below) if page.below else "",
    )


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
    return policy_pb2.RollbackPolicyResponse(policy=stored_to_wire(stored))
