"""Sends a decided request to a worker and relays its stream.

Before the first message a failed worker is replaced by a peer, then by a denser tier; after it nothing is replayed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision, Tier
from sparsity_rpc.errors import (
    StreamBrokenError,
    UnavailableError,
)
from sparsity_rpc.status import to_error

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.picking import Want
from sparsity_router.fleet.proof import fault
from sparsity_router.fleet.workers import Worker
from sparsity_router.relaying.dispatch import OvertakenError, died, dispatch, outstanding_tokens
from sparsity_router.relaying.hedging import Leg, Race
from sparsity_router.relaying.placing import Attempts, is_full, need_of, nobody, pick, served
from sparsity_router.relaying.turns import patience

_tracer = trace.get_tracer("sparsity.router")
_OVERLOAD, _COUNT = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE
# What the same request would meet on every worker.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
    _COUNT,
}
# A request that took so many workers with it is taken for the cause.
_MOST_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Relayed:
    """One relayed message.

    Attributes:
        response: the message.
        served: the decision as it is served by the worker that sent it.
        policy: what policy gave the request when that worker was asked.
    """

    response: inference_pb2.GenerateResponse
    served: Decision
    policy: Decision


class _Relay:
    """One request on its way."""

    def __init__(
        self,
        fleet: Fleet,
        request: worker_pb2.WorkerServiceGenerateRequest,
        review: Callable[[], Decision],
        context: grpc.aio.ServicerContext[Any, Any],
        decision_id: str,
        want: Callable[[], Want] | None,
    ) -> None:
        self._fleet = fleet
        self._request = request
        self._review = review
        self._context = context
        self._decision_id = decision_id
        self._want = want
        self.attempts = Attempts(set())
        self.decision = review()

    async def try_all(self, sent: Callable[[], None] = lambda: None) -> AsyncGenerator[Relayed]:
        """Tries every worker that may serve it, the decided tier's first; ends without a message when none did."""
        attempts, seconds = self.attempts, self._fleet.admission.hedge_seconds
        while (choice := self._choose()) is not None:
            # Waiting for room is no retry; asking another worker after a failure is.
            if attempts.failed and not self._fleet.retries.spend():
                problem = f"the retry budget is used up; last: {attempts.last_problem}"
                raise UnavailableError(problem)
            sent()
            first = True
            leg = self._open(*choice)
            spare = partial(self._spare, leg.served.tier)
            race = Race(leg, spare, seconds, partial(self._fell, first=True)) if seconds else None
            stream = race.responses() if race else leg.stream
            try:
                async for response in stream:
                    leg = race.leg if race else leg
                    first = False
                    if response.HasField("completion"):
                        attempts.complete = True
                        leg.worker.breaker.success()
                        if problem := fault(response.completion, leg.served.tier, must_report=leg.worker.must_prove):
                            leg.worker.distrust(problem)
                    yield Relayed(response, leg.served, leg.policy)
                if attempts.complete:
                    return
                error: Exception = StopAsyncIteration()
            except (grpc.aio.AioRpcError, OvertakenError) as failure:
                error = failure
            finally:
                await stream.aclose()
            self._fell(race.leg.worker if race else leg.worker, error, first=first)

    def _decide(self) -> Decision:
        """The decision as of now: nobody is asked by an older one."""
        self.decision = self._review()
        self._request.dense_reasoning = self.decision.dense_reasoning
        return self.decision

    def _choose(self) -> tuple[Worker, Tier] | None:
        """The next worker to ask, and at what tier; None when nobody is left."""
        decision = self._decide()
        for tier in (decision.tier, *decision.fallback):
            if worker := self._pick(tier):
                return worker, tier
        return None

    def _spare(self, tier: Tier) -> Leg | None:
        """A second worker beside one of ``tier`` that says nothing: of that tier, while policy still allows it."""
        at = tier if self._allows(tier) else self.decision.tier
        other = self._pick(at)
        return self._open(other, at) if other and self._fleet.retries.spend() else None

    def _allows(self, tier: Tier) -> bool:
        decision = self._decide()
        return tier is decision.tier or tier in decision.fallback

    def _pick(self, tier: Tier) -> Worker | None:
        return pick(self._fleet, tier, self.decision, self.attempts.tried, self._want)

    def _open(self, worker: Worker, tier: Tier) -> Leg:
        self.attempts.tried.add(worker.target)
        self.attempts.count += 1
        lease, left = (self._fleet.lease_key, self._decision_id), self._context.time_remaining()
        stream = dispatch(worker, self._request, tier, self.attempts.count, left, lease, self._allows)
        # Asked again, so that what is told of the request does not hang on what picked its worker.
        return Leg(worker, stream, served(self.decision, tier, self._fleet), self._review())

    def _fell(self, worker: Worker, error: Exception, *, first: bool) -> None:
        """Takes note of a stream that failed; raises where nobody else may be tried.

        Args:
            worker: whose stream it was.
            error: how it failed; StopAsyncIteration where it ended without a completion.
            first: whether no message had come.
        """
        attempts, refused = self.attempts, False
        if isinstance(error, OvertakenError):
            attempts.tried.discard(worker.target)
            return
        problem = "ended its stream without a completion"
        if isinstance(error, grpc.aio.AioRpcError):
            problem = f"{error.code().name}: {error.details()}"
            # A deadline or a bad request is no fault of the worker, whenever it shows; a count, only before it answers.
            if error.code() in _FINAL and (first or error.code() is not _COUNT):
                raise to_error(error) from error
            refused = first and error.code() is _OVERLOAD
            if refused:
                attempts.overloaded = True
                worker.refused()
            elif first:
                worker.failed(problem)
        if not refused:
            worker.breaker.failure()
            attempts.failed = True
        if not first:
            worker.failed(problem)
            told = f"worker {worker.name} failed mid-stream: {problem}; what was sent stands, ask again for the rest"
            raise StreamBrokenError(told)
        attempts.last_problem = f"{worker.name}: {problem}"
        attempts.deaths += died(error)
        if attempts.deaths >= _MOST_DEATHS:
            told = f"{attempts.deaths} workers died with this request in flight; it is not tried on another"
            raise StreamBrokenError(f"{told}; last: {attempts.last_problem}")


async def relay(
    fleet: Fleet,
    request: worker_pb2.WorkerServiceGenerateRequest,
    review: Callable[[], Decision],
    context: grpc.aio.ServicerContext[Any, Any],
    decision_id: str = "",
    want: Callable[[], Want] | None = None,
) -> AsyncGenerator[Relayed]:
    """Relays the stream of the first worker that answers.

    Args:
        fleet: the workers.
        request: in their terms.
        review: gives the decision as of now; asked before every attempt.
        context: of the client's call.
        decision_id: goes into the leases.
        want: what picking looks at.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
        StreamBrokenError: when a worker fails after its first message, or a second one dies before it.
        InvalidRequestError: when a worker refuses the request as invalid.
        TokenCountError: when the prompt's tokens lie outside the interval that it was decided for.
    """
    one = _Relay(fleet, request, review, context, decision_id, want)
    attempts = one.attempts
    fleet.retries.earn()
    until = time.monotonic() + patience(fleet, context)
    # Who comes while others wait joins them: room goes to the first in line.
    if not fleet.lines[one.decision.tier] or fleet.admission.queue_seconds <= 0:
        async with aclosing(one.try_all()) as relayed:
            async for item in relayed:
                yield item
        if attempts.complete:
            return
        if not is_full(fleet, one.decision, attempts) or until <= time.monotonic():
            raise nobody(fleet, one.decision, attempts)
    line = fleet.lines[one.decision.tier]
    need = need_of(one.decision)
    with line.ticket(request.priority, request.cache_salt, outstanding_tokens(request), need) as ticket:
        while not attempts.complete:
            await line.turn(ticket, until - time.monotonic())
            attempts.tried.clear()
            attempts.overloaded = False
            # The next in line need not wait for this one's first token.
            async with aclosing(one.try_all(sent=partial(line.leave, ticket))) as relayed:
                async for item in relayed:
                    yield item
            if not attempts.complete:
                if not is_full(fleet, one.decision, attempts):
                    raise nobody(fleet, one.decision, attempts)
                ticket.need = need_of(one.decision)
                line.rejoin(ticket, refused=attempts.overloaded)
