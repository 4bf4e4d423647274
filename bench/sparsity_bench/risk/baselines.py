"""What detection is compared with: literals and patterns alone, and every term of the shipped lists as a literal."""

from __future__ import annotations

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import Detection, Policy, Risk, StoredPolicy
from sparsity_policies.risk.corpus import RISKY, shipped_terms
from sparsity_policies.risk.weighing import acting

_SHORTEST = 3


def keywords() -> Scanner:
    """A scanner for the shipped lists of terms of each trade, each a literal of its domain."""
    terms = {
        domain: sorted(
            {term for one in shipped_terms() if one.domain == domain for term in one.terms if len(term) >= _SHORTEST}
        )
        for domain in RISKY
    }
    policies = [
        Policy(domain, Risk.HIGH, (), detection=Detection(literals=tuple(found), flag=domain))
        for domain, found in terms.items()
    ]
    return Scanner(policies)


def found_by(scanner: Scanner, text: str) -> bool:
    """Whether a scanner finds anything in a text as it is written or as it is read."""
    result = scanner.scan(text + "\n" + folded(text))
    return bool(result.domains or result.flags)


def shipped_snapshot() -> Snapshot:
    """The shipped policies, with every domain's detection acting."""
    chosen = acting(shipped_policies("standard"))
    return Snapshot.build(1, [StoredPolicy(policy, "", 1, 0.0, "", "") for policy in chosen])
