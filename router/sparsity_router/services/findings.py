"""What a prompt is like, as Explain tells it."""

from __future__ import annotations

from sparsity.v1 import inference_pb2
from sparsity_policies.risk.weighing import placed

from sparsity_router.decisions.decider import Decided


def findings(decided: Decided) -> list[inference_pb2.RiskFinding]:
    """What the text is like, with places in the text as it was written."""
    return [
        inference_pb2.RiskFinding(
            domain=finding.domain,
            probability=finding.probability,
            threshold=finding.threshold,
            outcome=finding.outcome,
            start=finding.start,
            end=finding.end,
            first_opinion=finding.first,
            second_opinion=finding.second,
        )
        for finding in placed(decided.risk.findings, decided.words)
    ]
