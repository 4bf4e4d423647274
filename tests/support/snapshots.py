"""Snapshots of the shipped policies."""

from __future__ import annotations

from collections.abc import Iterable

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Override, Policy, StoredPolicy


def stored(policy: Policy, revision: int = 1) -> StoredPolicy:
    return StoredPolicy(policy, f"etag-{revision}", revision, 0.0, "test", "test")


def snapshot(
    policies: Iterable[Policy] | None = None, overrides: Iterable[Override] = (), ttl: float = 300.0
) -> Snapshot:
    chosen = shipped_policies("small-context") if policies is None else policies
    return Snapshot.build(1, [stored(policy) for policy in chosen], overrides, ttl=ttl)
