"""InferenceService: classify, decide, relay."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision, Signals, Tier
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.wire import decision_to_wire, signals_to_wire
from sparsity_rpc import tracing
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, NotFoundError, SparsityError, TokenCountError
from sparsity_serving.bounds import MAX_NAME, check_labels, check_name
from sparsity_serving.leases import sign
from sparsity_serving.metrics.metering import Times

from sparsity_router.callers.admission import Callers
from sparsity_router.decisions.alternatives import alternatives
from sparsity_router.decisions.review import Review
from sparsity_router.decisions.sessions import Sessions, SessionTier
from sparsity_router.fleet.fleet import Fleet
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.observing.observer import Observer
from sparsity_router.observing.spans import conclude, describe
from sparsity_router.prompts.classified import Classified
from sparsity_router.prompts.classify import Classifier
from sparsity_router.relaying.dispatch import outstanding_tokens
from sparsity_router.relaying.relay import relay
from sparsity_router.relaying.shadow import Shadow
from sparsity_router.relaying.turns import place_in_turn
from sparsity_router.relaying.worker_request import wanted, worker_request

GenerateContext = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
OutcomeContext = grpc.aio.ServicerContext[inference_pb2.ReportOutcomeRequest, inference_pb2.ReportOutcomeResponse]
RouteContext = grpc.aio.ServicerContext[inference_pb2.RouteRequest, inference_pb2.RouteResponse]
ExplainContext = grpc.aio.ServicerContext[inference_pb2.ExplainRequest, inference_pb2.ExplainResponse]
_tracer = trace.get_tracer("sparsity.router")
# Seconds between tries to join an outcome to a decision; 0 is the last.
_OUTCOME_PATIENCE = (0.2, 0.4, 0.0)


class InferenceService:
    """Generate, Route, Explain and ReportOutcome.

    Args:
        classifier: finds out what a request is.
        policies: what to decide from.
        fleet: the workers.
        model: the served model's name.
        observer: told of every decision that was relayed.
        decisions: joins outcomes to decisions; None without a store.
        lease_key: what leases are signed with; None gives none.
        sessions: keeps conversations at their tier; None lets them move freely.
        callers: lets calls in; None lets everybody in.
        shadow: repeats a share of the sparse answers on dense workers.
    """

    def __init__(
        self,
        classifier: Classifier,
        policies: PolicyFollower,
        fleet: Fleet,
        model: str,
        observer: Observer | None = None,
        decisions: DecisionLog | None = None,
        lease_key: bytes | None = None,
        sessions: Sessions | None = None,
        callers: Callers | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._classifier = classifier
        self._policies = policies
        self._fleet = fleet
        self._model = model
        self._observer = observer
        self._decisions = decisions
        self._lease_key = lease_key
        self._sessions = sessions
        self._callers = callers or Callers()
        self._shadow = shadow

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Streams a completion from a worker of the decided tier."""
        with tracing.server_span(_tracer, "router.generate", context) as span:
            started, first = time.monotonic(), None
            await self._admit(request, context)
            decision_id = uuid.uuid4().hex
            classified, review = await self._decide(request, decision_id)
            counted, used = await self._callers.spend(request, classified.signals), 0
            told, policy = False, review.decision
            served: Decision | None = None
            try:
                while True:
                    _tell_caller(context, decision_id, policy)
                    describe(span, classified.signals, policy, decision_id, self._model, request.request_id)
                    inner = worker_request(request, classified, policy, decision_id)
                    want = partial(wanted, inner, request)
                    sample = self._shadow.take(decision_id, policy, inner) if self._shadow else None
                    messages = relay(self._fleet, inner, review, context, decision_id, want)
                    try:
                        async for relayed in messages:
                            response, served, policy = relayed.response, relayed.served, relayed.policy
                            first = time.monotonic() - started if first is None and response.token_ids else first
                            used = (used or classified.signals.min_tokens) + len(response.token_ids)
                            if sample is not None:
                                sample.tokens += response.token_ids
                            if response.HasField("completion"):
                                completion = response.completion
                                used = _used(completion.usage) or used
                                completion.decision.CopyFrom(decision_to_wire(served, decision_id))
                                conclude(span, served, completion)
                                # Before the caller has it, who may report an outcome at once.
                                told = True
                                times = Times(first, time.monotonic() - started)
                                self._tell(decision_id, request, review.signals, policy, served, completion, times)
                                if self._shadow and sample is not None:
                                    self._shadow.finish(sample, served, completion)
                            yield response
                        return
                    except TokenCountError:
                        if classified.prompt.ids:
                            raise
                        classified, review = await self._decide(request, decision_id, exact=True)
                        policy = review.decision
                    finally:
                        await messages.aclose()
            except asyncio.CancelledError:
                # Who leaves before the first token has had the prompt read all the same.
                used = used or classified.signals.min_tokens
                raise
            finally:
                self._callers.settle(classified.signals.tenant, counted, used)
                policy = policy if served else review.decision
                _tell_caller(context, decision_id, policy)
                if not told:
                    self._tell(decision_id, request, review.signals, policy, served, None)

    async def _admit(self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Checks caller and request, and counts it."""
        tenant = self._callers.check(context, request)
        self._classifier.check(request)
        self._callers.fell_back(context, tenant)
        await self._callers.count(tenant, request)

    async def Route(self, request: inference_pb2.RouteRequest, context: RouteContext) -> inference_pb2.RouteResponse:
        """The decision, a worker, and the lease that it takes exactly this request by."""
        with tracing.server_span(_tracer, "router.route", context) as span:
            await self._admit(request.request, context)
            if self._lease_key is None:
                raise ConfigurationError("this router signs no leases: it was started without --lease-key-file")
            decision_id = uuid.uuid4().hex
            classified, review = await self._decide(request.request, decision_id)
            counted = await self._callers.spend(request.request, classified.signals)
            tenant = classified.signals.tenant
            inner = worker_request(request.request, classified, review.decision, decision_id)
            try:
                want = partial(wanted, inner, request.request)
                worker, served, decision = await place_in_turn(self._fleet, inner, review, context, want)
            except (SparsityError, asyncio.CancelledError):
                self._callers.settle(tenant, counted, 0)
                raise
            self._callers.routed(decision_id, tenant, counted)
            describe(span, classified.signals, decision, decision_id, self._model, request.request.request_id)
            inner.tier = served.tier.value  # type: ignore[assignment]
            worker.expect(inner.request_id, outstanding_tokens(inner))
            self._tell(decision_id, request.request, review.signals, decision, served, None)
            return inference_pb2.RouteResponse(
                decision=decision_to_wire(served, decision_id),
                endpoint=worker.target,
                lease=sign(self._lease_key, inner, worker.name, decision_id),
                worker_request=inner.SerializeToString(),
            )

    def _tell(
        self,
        decision_id: str,
        request: inference_pb2.GenerateRequest,
        signals: Signals,
        decision: Decision,
        served: Decision | None,
        completion: inference_pb2.Completion | None,
        times: Times | None = None,
    ) -> None:
        if self._observer is not None:
            self._observer.relayed(decision_id, signals, decision, served, completion, times, request.request_id)

    async def Explain(
        self, request: inference_pb2.ExplainRequest, context: ExplainContext
    ) -> inference_pb2.ExplainResponse:
        """The decision that Generate would make now, with every step."""
        with tracing.server_span(_tracer, "router.explain", context):
            await self._admit(request.request, context)
            # Counted, where Generate would not: what would change the tier hangs on it.
            _, review = await self._decide(request.request, "", exact=True)
            signals, decision = review.signals, review.decision
            response = inference_pb2.ExplainResponse(
                signals=signals_to_wire(signals),
                decision=decision_to_wire(decision, ""),
                alternatives=alternatives(signals, self._policies.snapshot, decision),
            )
            for step in decision.steps:
                response.steps.add(
                    check=step.check,
                    matched=step.matched,
                    detail=step.detail,
                    tier=step.tier.value,
                )
            return response

    async def ReportOutcome(
        self, request: inference_pb2.ReportOutcomeRequest, context: OutcomeContext
    ) -> inference_pb2.ReportOutcomeResponse:
        """Joins a caller's measure of quality to the decision it is of."""
        await self._callers.count(self._callers.check(context, None))
        if self._decisions is None:
            raise ConfigurationError("this router keeps no decision log: it was started without --redis-url")
        if not request.decision_id:
            raise InvalidRequestError.of("decision_id", "is empty; it comes with the last message of Generate")
        check_name("decision_id", request.decision_id)
        if not request.HasField("score") or not 0.0 <= request.score <= 1.0:
            raise InvalidRequestError.of("score", "must be a number from 0 to 1")
        if not request.metric or len(request.metric) > MAX_NAME:
            raise InvalidRequestError.of("metric", f"must have 1 to {MAX_NAME} characters, such as exact_match")
        check_labels("labels", request.labels)
        labels = tuple(sorted(request.labels.items()))
        for patience in _OUTCOME_PATIENCE:
            try:
                await self._decisions.report(request.decision_id, request.metric, request.score, labels)
                break
            except NotFoundError:
                # The router that relayed the answer writes its log in batches.
                if not patience:
                    raise
                await asyncio.sleep(patience)
        return inference_pb2.ReportOutcomeResponse()

    async def _decide(
        self, request: inference_pb2.GenerateRequest, key: str, *, exact: bool = False
    ) -> tuple[Classified, Review]:
        policies, started = self._policies, time.monotonic()
        context = request.context
        before = SessionTier(None)
        if self._sessions:
            before = await self._sessions.tier(context.tenant, context.session)
        with tracing.span(_tracer, "router.classify"):
            classified = await self._classifier.classify(
                request,
                policies.snapshot,
                received=policies.now(),
                policy_age=policies.age,
                request_key=key,
                session_tier=before.tier,
                exact=exact,
            )
        with tracing.span(_tracer, "router.decide"):
            # A change that came while a long prompt was read counts: a kill switch must not wait for it.
            review = Review(policies, classified.in_doubt(before.problem), partial(self._held, context))
        if self._observer is not None:
            self._observer.classified(time.monotonic() - started)
        if self._sessions and key:
            self._sessions.served(context.tenant, context.session, review.decision)
        return classified, review

    def _held(self, context: inference_pb2.RequestContext) -> Tier | None:
        return self._sessions.held(context.tenant, context.session) if self._sessions else None


def _tell_caller(context: GenerateContext, decision_id: str, decision: Decision) -> None:
    # In the trailers, which come anyway: initial metadata would be one more write a request.
    context.set_trailing_metadata((("sparsity-decision-id", decision_id), ("sparsity-tier", decision.tier.word)))


def _used(usage: inference_pb2.Usage) -> int:
    """Tokens that a worker says it worked on; 0 where it does not."""
    return usage.prompt_tokens + usage.completion_tokens
