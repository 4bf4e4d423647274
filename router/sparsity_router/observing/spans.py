"""What a request's span says of it."""

from __future__ import annotations

from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision
from sparsity_rpc.generation import completed, requested
from sparsity_serving import telemetry

from sparsity_router.decisions.decider import Decided


def describe(
    span: trace.Span, request: inference_pb2.GenerateRequest, decided: Decided, decision: Decision, model: str
) -> None:
    """As decided."""
    if not span.is_recording():
        return
    signals = decided.signals
    span.set_attributes(
        {
            **requested(request, model),
            telemetry.DECISION_ID: decided.decision_id,
            telemetry.REQUEST_LABEL: request.request_id,
            telemetry.DOMAIN: signals.domain,
            telemetry.FLAGS: sorted(signals.flags),
            telemetry.PROMPT_TOKENS: signals.max_tokens,
            telemetry.SCANNED_BYTES: signals.scanned_bytes,
            telemetry.POLICY_TIER: decision.policy_tier.word,
            telemetry.POLICY_REVISION: decision.policy_revision,
            telemetry.MATCHED_RULE: decision.matched_rule,
        }
    )


def conclude(span: trace.Span, decision: Decision, completion: inference_pb2.Completion) -> None:
    """As served."""
    if not span.is_recording():
        return
    span.set_attributes(
        {
            **completed(completion),
            telemetry.TIER: decision.tier.word,
            telemetry.REASON: decision.reason.name,
            telemetry.WORKER_ID: completion.worker_id,
            **telemetry.attended(completion),
        }
    )
