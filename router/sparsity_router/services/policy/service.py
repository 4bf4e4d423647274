"""PolicyService: what each method needs, and who does it. Reads answer from the snapshot, writes go to the store."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Final

from sparsity_serving.access.principals import Role

from sparsity_router.services.policy import (
    audit,
    documents,
    kill_switch,
    override_ids,
    revisions,
    rollout,
    savings,
    simulation,
)
from sparsity_router.services.policy.access_control import Method, controlled
from sparsity_router.services.policy.state import PolicyState

METHODS: Final[Mapping[str, Method]] = {
    "GetPolicy": Method(Role.VIEWER, documents.get_policy, "domain"),
    "ListPolicies": Method(Role.VIEWER, documents.list_policies),
    "PutPolicy": Method(Role.EDITOR, documents.put_policy, "policy.domain"),
    "DeletePolicy": Method(Role.EDITOR, documents.delete_policy, "domain"),
    "WatchPolicies": Method(Role.VIEWER, documents.watch_policies),
    "ListPolicyRevisions": Method(Role.VIEWER, revisions.list_policy_revisions, "domain"),
    "RollbackPolicy": Method(Role.EDITOR, revisions.rollback_policy, "domain"),
    "UpdateRollout": Method(Role.EDITOR, rollout.update_rollout, "domain"),
    "ListOverrides": Method(Role.VIEWER, kill_switch.list_overrides),
    "PutOverride": Method(Role.BREAKER, override_ids.put_override, "override"),
    "DeleteOverride": Method(Role.BREAKER, kill_switch.delete_override, "id"),
    "SimulatePolicy": Method(Role.VIEWER, simulation.simulate_policy, "policy.domain"),
    "GetSavings": Method(Role.VIEWER, savings.get_savings),
    "ListAuditEvents": Method(Role.VIEWER, audit.list_audit_events),
}


def policy_service(state: PolicyState) -> SimpleNamespace:
    """The servicer: every method behind access control and audit."""
    return SimpleNamespace(**{name: controlled(name, method, state) for name, method in METHODS.items()})
