"""What detection is compared with: literals and patterns, alone and with the sentence model, and lists of terms."""

from __future__ import annotations

import math

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import Detection, Policy, Risk, StoredPolicy
from sparsity_policies.risk.corpus import RISKY, shipped_terms
from sparsity_policies.risk.weighing import acting
from sparsity_router.prompts import embedding_model
from sparsity_router.prompts.domains import DOUBT
from sparsity_router.prompts.embedding import Classifier, Embedder

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


class SentenceModel:
    """Literals, patterns, and the sentence model of `--detect declared`, with the time to read every prompt whole.

    It knows English.

    Args:
        snapshot: whose exemplars and literals are looked for.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        embedding_model.fetch(embedding_model.default_folder())
        self._scanner = snapshot.scanner
        self._high = {name for name, item in snapshot.policies.items() if item.policy.risk is Risk.HIGH}
        self._classifier = Classifier(Embedder(*embedding_model.model_files(None)))
        pairs = [
            (domain, text)
            for domain, item in sorted(snapshot.policies.items())
            for text in item.policy.detection.exemplars
        ]
        self._classifier.learn([text for _, text in pairs])
        self._classifier.use("shipped", pairs)

    def finds(self, text: str) -> bool:
        """Whether a request of a low-risk domain with this text would be moved, flagged or in doubt."""
        if found_by(self._scanner, text):
            return True
        scores = self._classifier.scores("shipped", text, math.inf) or {}
        return any(score.peak >= DOUBT for domain, score in scores.items() if domain in self._high)


def shipped_snapshot() -> Snapshot:
    """The shipped policies, with every domain's detection acting."""
    chosen = acting(shipped_policies("standard"))
    return Snapshot.build(1, [StoredPolicy(policy, "", 1, 0.0, "", "") for policy in chosen])
