"""InferenceService: classify, decide, relay."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.threads import EXPLANATIONS
from sparsity_policies.wire import decision_to_wire, signals_to_wire
from sparsity_rpc import tracing
from sparsity_rpc.channels import DECISION_ID, LOST, REASON, TIER
from sparsity_rpc.errors import (
    ConfigurationError,
    SparsityError,
    TokenCountError,
    UnimplementedError,
)
from sparsity_rpc.methods import EXPLAIN, GENERATE, ROUTE
from sparsity_serving import telemetry
from sparsity_serving.access.lease_keys import LeaseKeys
from sparsity_serving.access.leases import sign
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.sampling import wanted_answers

from sparsity_router.callers.admission import Callers, Charge
from sparsity_router.decisions.alternatives import alternatives
from sparsity_router.decisions.decider import Decided, Decider
from sparsity_router.decisions.sessions import Sessions
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.models.models import Model, Models
from sparsity_router.observing.account import Account
from sparsity_router.observing.observer import EndedRequest, Observer
from sparsity_router.observing.spans import conclude, describe
from sparsity_router.relaying import choices
from sparsity_router.relaying.answers import Answers
from sparsity_router.relaying.placing import Tried
from sparsity_router.relaying.relay import Relayed, relay
from sparsity_router.relaying.shadow import Shadow
from sparsity_router.relaying.turns import place_in_turn
from sparsity_router.relaying.worker_request import WorkerRequest, outstanding_tokens
from sparsity_router.services.findings import findings
from sparsity_router.services.outcomes import report

GenerateContext = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
OutcomeContext = grpc.aio.ServicerContext[inference_pb2.ReportOutcomeRequest, inference_pb2.ReportOutcomeResponse]
RouteContext = grpc.aio.ServicerContext[inference_pb2.RouteRequest, inference_pb2.RouteResponse]
ExplainContext = grpc.aio.ServicerContext[inference_pb2.ExplainRequest, inference_pb2.ExplainResponse]
_tracer = tracing.tracer("sparsity.router")


class InferenceService:
    """Generate, Route, Explain and ReportOutcome.

    Args:
        models: that requests may ask for.
        follower: of the policies to decide from.
        observer: told of every decision that was relayed.
        decisions: joins outcomes to decisions; None without a store.
        lease_keys: what leases are signed with; None gives none.
        sessions: keeps conversations at their tier; None lets them move freely.
        callers: lets calls in; None lets everybody in.
        shadow: repeats a share of the sparse answers on dense workers.
    """

    def __init__(
        self,
        models: Models,
        follower: PolicyFollower,
        observer: Observer | None = None,
        decisions: DecisionLog | None = None,
        lease_keys: LeaseKeys | None = None,
        sessions: Sessions | None = None,
        callers: Callers | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._models = models
        self._decider = Decider(follower, sessions)
        self._follower = follower
        self._observer = observer
        self._decisions = decisions
        self._lease_keys = lease_keys
        self._callers = callers or Callers()
        self._shadow = shadow

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Streams a completion from a worker of the decided tier."""
        with tracing.server_span(_tracer, "router.generate", GENERATE, context) as span:
            started = time.monotonic()
            model, decided, charge = await self._let_in(request, context, span)
            account = Account(self._observer, decided, request, started)
            # A client that streamed from a worker itself may have lost it.
            shared = Answers(lost=int(LOST in dict(context.invocation_metadata() or ())))
            one = partial(self._relay, model, request, context, account, span, shared)
            told: Decision | None = None
            try:
                async with aclosing(choices.relayed(account.answers, one, shared)) as messages:
                    async for number, relayed in messages:
                        response = relayed.response
                        response.choice = number
                        if response.HasField("completion"):
                            response.completion.decision.CopyFrom(decision_to_wire(relayed.served, decided.decision_id))
                        if (whole := account.add(response, relayed.served, relayed.policy)) is not None:
                            conclude(span, account.served, whole)
                        if account.served is not told:
                            _tell_caller(context, decided.decision_id, told := account.served)
                        yield response
            except asyncio.CancelledError:
                account.left(is_read=shared.readers > 0)
                raise
            except Exception as error:
                account.failed(error)
                raise
            finally:
                self._callers.settle(charge, account.used)
                _tell_caller(context, decided.decision_id, account.served)
                account.close()

    async def _let_in(
        self,
        request: inference_pb2.GenerateRequest,
        context: GenerateContext | RouteContext,
        span: trace.Span,
    ) -> tuple[Model, Decided, Charge]:
        """A call's model and decision, and what its tenant was charged; a refused call tells what it has by then."""
        decision_id = _begin(context, span)
        model = await self._admit(request, context, wanted_answers(request))
        decided = await self._decide(model, request, decision_id)
        _tell_caller(context, decision_id, decided.review.decision)
        return model, decided, await self._callers.charge(request, decided.signals)

    async def _admit(
        self,
        request: inference_pb2.GenerateRequest,
        context: GenerateContext | RouteContext | ExplainContext,
        answers: int = 1,
    ) -> Model:
        """Checks a call and counts it; its model, of which no stranger learns."""
        tenant = self._callers.check(context, request)
        model = self._models.asked(request)
        await self._callers.admit(request, context, tenant, model.served, answers)
        return model

    def _unsaid(self, request: inference_pb2.GenerateRequest, decided: Decided, model: Model) -> int:
        return self._callers.default_new_tokens(request, decided.signals.tenant, model.served)

    async def _relay(
        self,
        model: Model,
        request: inference_pb2.GenerateRequest,
        context: GenerateContext,
        account: Account,
        span: trace.Span,
        shared: Answers,
        number: int,
    ) -> AsyncGenerator[Relayed]:
        """A worker's stream; a prompt that has other tokens than it was decided for is counted and decided anew."""
        decided, tried = account.decided, Tried(set(), answers=shared)
        while True:
            if not number:
                _tell_caller(context, decided.decision_id, decided.review.decision)
                describe(span, request, decided, decided.review.decision, model.name)
            inner = WorkerRequest.of(request, decided, self._unsaid(request, decided, model), number)
            messages = relay(model.fleet, inner, context, tried)
            if self._shadow is not None and not number:
                messages = self._shadow.sampled(model.fleet, inner, messages)
            try:
                async with aclosing(messages):
                    async for relayed in messages:
                        yield relayed
                return
            except TokenCountError:
                if decided.prompt.ids:
                    raise
            decided = await self._decide(model, request, decided.decision_id, exact=True)
            account.decided_anew(decided)
            tried = tried.anew()

    async def Route(self, request: inference_pb2.RouteRequest, context: RouteContext) -> inference_pb2.RouteResponse:
        """The decision, a worker, and the lease that it takes exactly this request by."""
        with tracing.server_span(_tracer, "router.route", ROUTE, context) as span:
            asked = request.request
            if self._lease_keys is None:
                _begin(context, span)
                self._callers.check(context, asked)
                raise ConfigurationError("this router signs no leases: it was started without --lease-key-file")
            if wanted_answers(asked) > 1:
                _begin(context, span)
                self._callers.check(context, asked)
                raise UnimplementedError("a lease is good for one answer; the relay gives several")
            model, decided, charge = await self._let_in(asked, context, span)
            try:
                inner = WorkerRequest.of(asked, decided, self._unsaid(asked, decided, model))
                worker, served, decision = await place_in_turn(model.fleet, inner, context)
            except (SparsityError, asyncio.CancelledError):
                self._callers.settle(charge, 0)
                raise
            self._callers.routed(decided.decision_id, charge)
            describe(span, asked, decided, decision, model.name)
            message = inner.message
            message.tier = served.tier.wire
            worker.expect(message.request_id, served.tier, outstanding_tokens(message))
            if self._observer is not None:
                signals, label = decided.review.signals, asked.request_id
                ended = EndedRequest(decided.decision_id, signals, decision, served, label=label)
                self._observer.ended(ended)
            answer = inference_pb2.RouteResponse(
                decision=decision_to_wire(served, decided.decision_id),
                endpoint=worker.target,
                lease=sign(self._lease_keys, message, worker.name, decided.decision_id),
                worker_request=message.SerializeToString(),
            )
            timeouts = worker.patience.at(served.tier)
            answer.first_message_timeout.FromMilliseconds(int(timeouts.first * 1000))
            answer.next_message_timeout.FromMilliseconds(int(timeouts.between * 1000))
            return answer

    async def Explain(
        self, request: inference_pb2.ExplainRequest, context: ExplainContext
    ) -> inference_pb2.ExplainResponse:
        """The decision that Generate would make now, with every step."""
        with tracing.server_span(_tracer, "router.explain", EXPLAIN, context):
            model = await self._admit(request.request, context)
            # Counted, where Generate would not: what would change the tier hangs on it.
            decided = await self._decide(model, request.request, "", exact=True)
            review = decided.review
            signals, decision, snapshot = review.signals, review.decision, self._follower.snapshot
            response = inference_pb2.ExplainResponse(
                signals=signals_to_wire(signals),
                decision=decision_to_wire(decision, ""),
                # A decision each, and a policy's rules may take long.
                alternatives=await EXPLANATIONS.run(alternatives, signals, snapshot, decision),
            )
            for match in await model.classifier.locate(request.request, snapshot):
                response.matches.add(
                    domain=match.owner.domain,
                    flag=match.owner.flag,
                    expression=match.owner.source,
                    form=match.form,
                    start=match.start,
                    end=match.end,
                )
            for step in decision.steps:
                response.steps.add(
                    check=step.check,
                    matched=step.matched,
                    detail=step.detail,
                    tier=step.tier.value,
                )
            response.findings.extend(await off_loop(OnLoop.TOKENIZER, len(decided.words), findings, decided))
            return response

    async def ReportOutcome(
        self, request: inference_pb2.ReportOutcomeRequest, context: OutcomeContext
    ) -> inference_pb2.ReportOutcomeResponse:
        """Joins a caller's measure of quality to the decision it is of."""
        tenant = self._callers.check(context, None)
        await self._callers.count(tenant)
        await report(self._decisions, request, tenant)
        return inference_pb2.ReportOutcomeResponse()

    async def _decide(
        self, model: Model, request: inference_pb2.GenerateRequest, decision_id: str, *, exact: bool = False
    ) -> Decided:
        decided = await self._decider.decide(request, model.classifier, decision_id, exact=exact)
        if self._observer is not None:
            self._observer.classified(decided)
        return decided


def _begin(context: GenerateContext | RouteContext, span: trace.Span) -> str:
    """An id for a decision, which the caller and the request's span are told before anything can be refused."""
    decision_id = uuid.uuid4().hex
    span.set_attribute(telemetry.DECISION_ID, decision_id)
    _tell_caller(context, decision_id)
    return decision_id


def _tell_caller(context: GenerateContext | RouteContext, decision_id: str, decision: Decision | None = None) -> None:
    """Its decision in the trailers, which come anyway: initial metadata would be one more write a request."""
    told = ((TIER, decision.tier.word), (REASON, decision.reason.name)) if decision is not None else ()
    context.set_trailing_metadata(((DECISION_ID, decision_id), *told))
