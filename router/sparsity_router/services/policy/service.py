"""PolicyService, put together from its parts, each in a module of its own."""

from __future__ import annotations

from sparsity_router.services.policy.audit import AuditTrail
from sparsity_router.services.policy.documents import Documents
from sparsity_router.services.policy.guarded import Guarded
from sparsity_router.services.policy.kill_switch import KillSwitch
from sparsity_router.services.policy.revisions import Revisions
from sparsity_router.services.policy.rollout import Rollouts
from sparsity_router.services.policy.savings import SavingsReport
from sparsity_router.services.policy.simulation import Simulations
from sparsity_router.services.policy.state import PolicyState


class PolicyService(Documents, Revisions, KillSwitch, Rollouts, Simulations, SavingsReport, AuditTrail):
    """Reads answer from the snapshot that this router decides from, writes go to the store."""


def policy_service(state: PolicyState) -> Guarded:
    """The service behind access control and audit."""
    return Guarded(PolicyService(state), state.access, state.recorder, state.policies.now)
