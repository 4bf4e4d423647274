"""PolicyService: get, list, put, watch and overrides; the rest is in the contract only."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from sparsity.errors import ConflictError, InvalidRequestError, NotFoundError, StoreError
from sparsity.v1 import policy_pb2
from sparsity_policies.model import StoredPolicy
from sparsity_policies.snapshot import Snapshot
from sparsity_policies.store import PolicyStore
from sparsity_policies.wire import (
    override_from_wire,
    override_to_wire,
    policy_from_wire,
    stored_to_wire,
    timestamp,
)

from sparsity_router.policies import PolicyFollower

Context = grpc.aio.ServicerContext[Any, Any]
_PAGE = 1000
_READ_YOUR_WRITE_SECONDS = 1.0


class PolicyService:
    """Reads answer from the snapshot that this router decides from, writes go to the store."""

    def __init__(self, policies: PolicyFollower, store: PolicyStore) -> None:
        self._policies = policies
        self._store = store

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Context) -> policy_pb2.GetPolicyResponse:
        """One policy."""
        return policy_pb2.GetPolicyResponse(policy=stored_to_wire(self._find(request.domain)))

    async def ListPolicies(
        self, request: policy_pb2.ListPoliciesRequest, context: Context
    ) -> policy_pb2.ListPoliciesResponse:
        """All policies, a page at a time; the page token is the last domain of the page before."""
        snapshot = self._policies.snapshot
        domains = sorted(domain for domain in snapshot.policies if domain > request.page_token)
        size = request.page_size if 0 < request.page_size <= _PAGE else _PAGE
        page = domains[:size]
        return policy_pb2.ListPoliciesResponse(
            policies=[stored_to_wire(snapshot.policies[domain].stored) for domain in page],
            next_page_token=page[-1] if len(domains) > size else "",
            revision=snapshot.revision,
        )

    async def PutPolicy(self, request: policy_pb2.PutPolicyRequest, context: Context) -> policy_pb2.PutPolicyResponse:
        """Writes a policy, or only checks it."""
        policy = policy_from_wire(request.policy)
        etag = request.etag if request.HasField("etag") else None
        if request.validate_only:
            present = self._policies.snapshot.policies.get(policy.domain)
            there = present.stored.etag if present else ""
            if etag is not None and etag != there:
                raise ConflictError(f"policy {policy.domain}: etag {there!r} is in the store, not {etag!r}")
            draft = StoredPolicy(policy, there, self._policies.snapshot.revision, time.time(), "", request.reason)
            return policy_pb2.PutPolicyResponse(policy=stored_to_wire(draft))
        stored = await self._store.put(policy, etag=etag, actor=_actor(context), reason=request.reason)
        # The writer's next request to this router sees the write.
        await self._policies.reached(stored.revision, _READ_YOUR_WRITE_SECONDS)
        return policy_pb2.PutPolicyResponse(policy=stored_to_wire(stored))

    async def WatchPolicies(
        self, request: policy_pb2.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[policy_pb2.WatchPoliciesResponse]:
        """Every snapshot this router takes up."""
        before: Snapshot | None = None
        async for snapshot in self._policies.snapshots():
            yield policy_pb2.WatchPoliciesResponse(
                revision=snapshot.revision,
                content_hash=snapshot.content_hash,
                changed_domains=_changed(before, snapshot),
                rejected_domains=snapshot.rejected,
                load_time=timestamp(self._policies.loaded_at),
            )
            before = snapshot

    async def ListOverrides(
        self, request: policy_pb2.ListOverridesRequest, context: Context
    ) -> policy_pb2.ListOverridesResponse:
        """The overrides that act on this router now."""
        now = time.time()
        active = [o for o in self._policies.snapshot.overrides if o.expire_time is None or o.expire_time > now]
        return policy_pb2.ListOverridesResponse(overrides=[override_to_wire(override) for override in active])

    async def PutOverride(
        self, request: policy_pb2.PutOverrideRequest, context: Context
    ) -> policy_pb2.PutOverrideResponse:
        """Sets an override: here at once, and in the store when it can be reached."""
        if not request.override.reason:
            raise InvalidRequestError.of("override.reason", "is empty; say why, for those who find the switch thrown")
        override = override_from_wire(request.override, new_id=uuid.uuid4().hex[:8])
        override = dataclasses.replace(override, actor=_actor(context))
        self._policies.set_override(override, local=True)
        try:
            await self._store.put_override(override)
        except StoreError:
            return policy_pb2.PutOverrideResponse(override=override_to_wire(override), stored=False)
        self._policies.hand_over(override)
        return policy_pb2.PutOverrideResponse(override=override_to_wire(override), stored=True)

    async def DeleteOverride(
        self, request: policy_pb2.DeleteOverrideRequest, context: Context
    ) -> policy_pb2.DeleteOverrideResponse:
        """Ends an override: in the store first, so that no replica keeps what another has ended."""
        try:
            await self._store.delete_override(request.id)
        except NotFoundError:
            if not self._policies.end_override(request.id):
                raise
        else:
            self._policies.end_override(request.id)
        return policy_pb2.DeleteOverrideResponse()

    def _find(self, domain: str) -> StoredPolicy:
        found = self._policies.snapshot.policies.get(domain)
        if found is None:
            known = ", ".join(sorted(self._policies.snapshot.policies))
            raise NotFoundError(f"policy {domain!r} does not exist; there are {known}")
        return found.stored


def _changed(before: Snapshot | None, after: Snapshot) -> list[str]:
    if before is None:
        return sorted(after.policies)
    old = {domain: item.stored.etag for domain, item in before.policies.items()}
    new = {domain: item.stored.etag for domain, item in after.policies.items()}
    return sorted(domain for domain in old | new if old.get(domain) != new.get(domain))


def _actor(context: Context) -> str:
    metadata = dict(context.invocation_metadata() or ())
    named = metadata.get("sparsity-actor", "")
    return named if isinstance(named, str) and named else context.peer()
