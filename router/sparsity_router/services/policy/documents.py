"""Get, list, put, delete and watch policies."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.documents.document import encode
from sparsity_policies.model import Policy, StoredPolicy
from sparsity_policies.threads import DRAFTS
from sparsity_policies.wire import policy_from_wire, stored_to_wire, timestamp
from sparsity_rpc.errors import ConflictError
from sparsity_serving.bounds import page_size

from sparsity_router.services.policy.state import PolicyState

_PAGE = 1000
# A page ends with the policy that makes it longer: a message of all may be more than one may be.
_PAGE_BYTES = 2**22


async def get_policy(
    state: PolicyState, request: policy_pb2.GetPolicyRequest, actor: str
) -> policy_pb2.GetPolicyResponse:
    """One policy."""
    # Of a large document, here and below, it would hold up the event loop.
    return policy_pb2.GetPolicyResponse(policy=await DRAFTS.run(stored_to_wire, state.find(request.domain)))


async def list_policies(
    state: PolicyState, request: policy_pb2.ListPoliciesRequest, actor: str
) -> policy_pb2.ListPoliciesResponse:
    """All policies, a page at a time; the page token is the last domain of the page before."""
    return await DRAFTS.run(_page, state.follower.snapshot, request)


def _page(snapshot: Snapshot, request: policy_pb2.ListPoliciesRequest) -> policy_pb2.ListPoliciesResponse:
    domains = sorted(domain for domain in snapshot.policies if domain > request.page_token)
    response, size = policy_pb2.ListPoliciesResponse(revision=snapshot.revision), 0
    for domain in domains[: page_size(request.page_size, _PAGE)]:
        response.policies.append(stored_to_wire(snapshot.policies[domain].stored))
        size += response.policies[-1].ByteSize()
        if size >= _PAGE_BYTES:
            break
    if len(domains) > len(response.policies):
        response.next_page_token = response.policies[-1].policy.domain
    return response


async def put_policy(
    state: PolicyState, request: policy_pb2.PutPolicyRequest, actor: str
) -> policy_pb2.PutPolicyResponse:
    """Writes a policy, or only checks it."""
    store = state.writable()
    policy = await DRAFTS.run(_checked, state, request.policy)
    etag = request.etag if request.HasField("etag") else None
    if request.validate_only:
        snapshot = state.follower.snapshot
        present = snapshot.policies.get(policy.domain)
        there = present.stored.etag if present else ""
        if etag is not None and etag != there:
            raise ConflictError(f"policy {policy.domain}: etag {there!r} is in the store, not {etag!r}")
        draft = StoredPolicy(policy, there, snapshot.revision, state.follower.now(), "", request.reason)
        return policy_pb2.PutPolicyResponse(policy=await DRAFTS.run(stored_to_wire, draft))
    stored = await store.put(policy, etag=etag, actor=actor, reason=request.reason)
    await state.seen(stored.revision)
    return policy_pb2.PutPolicyResponse(policy=await DRAFTS.run(stored_to_wire, stored))


def _checked(state: PolicyState, message: policy_pb2.Policy) -> Policy:
    policy = policy_from_wire(message, EDITS.check)
    encode(policy)
    state.check(policy)
    return policy


async def delete_policy(
    state: PolicyState, request: policy_pb2.DeletePolicyRequest, actor: str
) -> policy_pb2.DeletePolicyResponse:
    """Deletes a policy; its revisions stay, and a rollback brings it back."""
    store = state.writable()
    etag = request.etag if request.HasField("etag") else None
    revision = await store.delete(request.domain, etag=etag, actor=actor, reason=request.reason)
    await state.seen(revision)
    return policy_pb2.DeletePolicyResponse()


async def watch_policies(
    state: PolicyState, request: policy_pb2.WatchPoliciesRequest, actor: str
) -> AsyncIterator[policy_pb2.WatchPoliciesResponse]:
    """Every snapshot this router takes up."""
    before: Snapshot | None = None
    async for snapshot in state.follower.snapshots():
        yield policy_pb2.WatchPoliciesResponse(
            revision=snapshot.revision,
            content_hash=snapshot.content_hash,
            changed_domains=_changed(before, snapshot),
            rejected_domains=snapshot.rejected,
            drifted_domains=snapshot.drifted,
            load_time=timestamp(state.follower.loaded_at),
        )
        before = snapshot


def _changed(before: Snapshot | None, after: Snapshot) -> list[str]:
    if before is None:
        return sorted(after.policies)
    old = {domain: item.stored.etag for domain, item in before.policies.items()}
    new = {domain: item.stored.etag for domain, item in after.policies.items()}
    return sorted(domain for domain in old | new if old.get(domain) != new.get(domain))
