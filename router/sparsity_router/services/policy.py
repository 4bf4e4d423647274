"""PolicyService, put together from its parts, each in a module of its own."""

from __future__ import annotations

from sparsity_router.services.audit import AuditTrail
from sparsity_router.services.documents import Documents
from sparsity_router.services.guarded import Guarded
from sparsity_router.services.kill_switch import KillSwitch
from sparsity_router.services.policy_state import PolicyState
from sparsity_router.services.revisions import Revisions
from sparsity_router.services.rollout import Rollouts
from sparsity_router.services.savings import SavingsReport
from sparsity_router.services.simulation import Simulations


class PolicyService(Documents, Revisions, KillSwitch, Rollouts, Simulations, SavingsReport, AuditTrail):
    """Reads answer from the snapshot that this router decides from, writes go to the store."""


def policy_service(state: PolicyState) -> Guarded:
    """The service behind access control and audit."""
    return Guarded(PolicyService(state), state.access, state.recorder, state.policies.now)
