"""InferenceService: classify, decide, relay."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from opentelemetry import trace
from sparsity import telemetry
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.decide import decide
from sparsity_policies.model import Decision, Signals
from sparsity_policies.wire import decision_to_wire, signals_to_wire

from sparsity_router.alternatives import alternatives
from sparsity_router.classify import Classified, Classifier
from sparsity_router.fleet import Fleet
from sparsity_router.policies import PolicyFollower
from sparsity_router.relay import relay

GenerateContext = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
ExplainContext = grpc.aio.ServicerContext[inference_pb2.ExplainRequest, inference_pb2.ExplainResponse]
_tracer = trace.get_tracer("sparsity.router")
MAX_PRIORITY = 9


class InferenceService:
    """Generate and Explain; Route and ReportOutcome are in the contract only."""

    def __init__(self, classifier: Classifier, policies: PolicyFollower, fleet: Fleet, model: str) -> None:
        self._classifier = classifier
        self._policies = policies
        self._fleet = fleet
        self._model = model

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Streams a completion from a worker of the decided tier."""
        with telemetry.server_span(_tracer, "router.generate", context) as span:
            classified, decision = await self._decide(request)
            decision_id = uuid.uuid4().hex
            _describe(span, classified.signals, decision, decision_id, self._model)
            metadata = (("sparsity-decision-id", decision_id), ("sparsity-tier", decision.tier.word))
            await context.send_initial_metadata(metadata)
            inner = worker_pb2.WorkerServiceGenerateRequest(
                request_id=request.request_id or decision_id,
                prompt=inference_pb2.TokenIds(ids=classified.token_ids),
                sampling=request.sampling,
                priority=min(request.priority, MAX_PRIORITY),
            )
            if request.context.tenant:
                inner.cache_salt = request.context.tenant
            async with aclosing(relay(self._fleet, inner, decision, context)) as messages:
                async for relayed in messages:
                    response = relayed.response
                    if response.HasField("completion"):
                        response.completion.decision.CopyFrom(decision_to_wire(relayed.decision, decision_id))
                        _conclude(span, relayed.decision, response.completion)
                    yield response

    async def Explain(
        self, request: inference_pb2.ExplainRequest, context: ExplainContext
    ) -> inference_pb2.ExplainResponse:
        """The decision that Generate would make now, with every step."""
        with telemetry.server_span(_tracer, "router.explain", context):
            classified, decision = await self._decide(request.request)
            response = inference_pb2.ExplainResponse(
                signals=signals_to_wire(classified.signals),
                decision=decision_to_wire(decision, ""),
                alternatives=alternatives(classified.signals, self._policies.snapshot, decision),
            )
            for step in decision.steps:
                response.steps.add(
                    check=step.check,
                    matched=step.matched,
                    detail=step.detail,
                    tier=step.tier.value,
                )
            return response

    async def _decide(self, request: inference_pb2.GenerateRequest) -> tuple[Classified, Decision]:
        snapshot, age = self._policies.snapshot, self._policies.age
        with _tracer.start_as_current_span("router.classify"):
            classified = await self._classifier.classify(request, snapshot, age)
        with _tracer.start_as_current_span("router.decide"):
            # A change that came while a long prompt was read counts: a kill switch must not wait for it.
            return classified, decide(classified.signals, self._policies.snapshot)


def _describe(span: trace.Span, signals: Signals, decision: Decision, decision_id: str, model: str) -> None:
    if not span.is_recording():
        return
    span.set_attributes(
        {
            telemetry.GEN_AI_OPERATION: "text_completion",
            telemetry.GEN_AI_MODEL: model,
            telemetry.DECISION_ID: decision_id,
            telemetry.DOMAIN: signals.domain,
            telemetry.FLAGS: sorted(signals.flags),
            telemetry.PROMPT_TOKENS: signals.max_tokens,
            telemetry.SCANNED_BYTES: signals.scanned_bytes,
            telemetry.POLICY_TIER: decision.policy_tier.word,
            telemetry.POLICY_REVISION: decision.policy_revision,
            telemetry.MATCHED_RULE: decision.matched_rule,
        }
    )


def _conclude(span: trace.Span, decision: Decision, completion: inference_pb2.Completion) -> None:
    if not span.is_recording():
        return
    span.set_attributes(
        {
            telemetry.TIER: decision.tier.word,
            telemetry.REASON: decision.reason.name,
            telemetry.WORKER_ID: completion.worker_id,
            telemetry.GEN_AI_INPUT_TOKENS: completion.usage.prompt_tokens,
            telemetry.GEN_AI_OUTPUT_TOKENS: completion.usage.completion_tokens,
            telemetry.PREFILL_DENSITY: completion.sparsity.prefill_density,
            telemetry.DECODE_DENSITY: completion.sparsity.decode_density,
            telemetry.COVERAGE: completion.sparsity.coverage,
        }
    )
