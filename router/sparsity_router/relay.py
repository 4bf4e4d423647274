"""Sends a decided request to a worker and relays its stream.

Before the first message a failed worker is replaced by a peer, then by a denser tier; after it nothing is replayed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from opentelemetry import trace
from sparsity.errors import (
    OverloadedError,
    SparsityError,
    StreamBrokenError,
    UnavailableError,
)
from sparsity.status import to_error
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision, Reason, Tier

from sparsity_router.dispatch import dispatch, outstanding_tokens
from sparsity_router.fleet import Fleet
from sparsity_router.hedging import Leg, Race
from sparsity_router.picking import Want
from sparsity_router.workers import State, Worker

_tracer = trace.get_tracer("sparsity.router")
_OVERLOAD = grpc.StatusCode.RESOURCE_EXHAUSTED
# What the same request would meet on every worker.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
}


@dataclass(frozen=True, slots=True)
class Relayed:
    """One relayed message, and the decision as it is served by the worker that sent it."""

    response: inference_pb2.GenerateResponse
    decision: Decision


@dataclass(slots=True)
class _Attempts:
    """What has been tried for one request."""

    tried: set[str]
    count: int = 0
    overloaded: bool = False
    failed: bool = False
    complete: bool = False
    last_problem: str = ""


@dataclass(slots=True)
class _Relay:
    """One request on its way."""

    fleet: Fleet
    request: worker_pb2.WorkerServiceGenerateRequest
    context: grpc.aio.ServicerContext[Any, Any]
    decision_id: str
    want: Callable[[], Want] | None
    attempts: _Attempts

    async def try_all(self, decision: Decision, sent: Callable[[], None] = lambda: None) -> AsyncGenerator[Relayed]:
        """Tries every worker that may serve it, the decided tier's first; ends without a message when none did."""
        attempts = self.attempts
        for tier in (decision.tier, *decision.fallback):
            served = _served(decision, tier, self.fleet)
            while worker := self._pick(tier, decision):
                # Waiting for room is no retry; asking another worker after a failure is.
                if attempts.failed and not self.fleet.retries.spend():
                    problem = f"the retry budget is used up; last: {attempts.last_problem}"
                    raise UnavailableError(problem)
                sent()
                first = True
                race = self._race(worker, tier, decision)
                stream = race.responses() if race else self._open(worker, tier).stream
                try:
                    async for response in stream:
                        worker = race.leg.worker if race else worker
                        first = False
                        if response.HasField("completion"):
                            attempts.complete = True
                            worker.breaker.success()
                            _check_report(response.completion, worker)
                        yield Relayed(response, served)
                    if attempts.complete:
                        return
                    error: Exception = StopAsyncIteration()
                except grpc.aio.AioRpcError as failure:
                    error = failure
                finally:
                    await stream.aclose()
                self._fell(race.leg.worker if race else worker, error, first=first)

    def _pick(self, tier: Tier, decision: Decision) -> Worker | None:
        return _pick(self.fleet, tier, decision, self.attempts.tried, self.want)

    def _open(self, worker: Worker, tier: Tier) -> Leg:
        self.attempts.tried.add(worker.target)
        self.attempts.count += 1
        lease, left = (self.fleet.lease_key, self.decision_id), self.context.time_remaining()
        return Leg(worker, dispatch(worker, self.request, tier, self.attempts.count, left, lease))

    def _race(self, worker: Worker, tier: Tier, decision: Decision) -> Race | None:
        """A hedged stream, where hedging is on."""
        seconds = self.fleet.admission.hedge_seconds
        if not seconds:
            return None

        def spare() -> Leg | None:
            other = self._pick(tier, decision)
            return self._open(other, tier) if other and self.fleet.retries.spend() else None

        return Race(self._open(worker, tier), spare, seconds, partial(self._fell, first=True))

    def _fell(self, worker: Worker, error: Exception, *, first: bool) -> None:
        """Takes note of a stream that failed; raises where nobody else may be tried.

        Args:
            worker: whose stream it was.
            error: how it failed; StopAsyncIteration where it ended without a completion.
            first: whether no message had come.
        """
        attempts, refused = self.attempts, False
        problem = "ended its stream without a completion"
        if isinstance(error, grpc.aio.AioRpcError):
            problem = f"{error.code().name}: {error.details()}"
            # A deadline or a bad request is no fault of the worker, whenever it shows.
            if error.code() in _FINAL:
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


async def relay(
    fleet: Fleet,
    request: worker_pb2.WorkerServiceGenerateRequest,
    decision: Decision,
    context: grpc.aio.ServicerContext[Any, Any],
    decision_id: str = "",
    review: Callable[[], Decision] | None = None,
    want: Callable[[], Want] | None = None,
) -> AsyncGenerator[Relayed]:
    """Relays the stream of the first worker that answers.

    Args:
        fleet: the workers.
        request: in their terms.
        decision: what policy gave.
        context: of the client's call.
        decision_id: goes into the leases.
        review: decides anew, after a wait in line.
        want: what picking looks at.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
        StreamBrokenError: when a worker fails after its first message.
        InvalidRequestError: when a worker refuses the request as invalid.
        TokenCountError: when the prompt's tokens lie outside the interval that it was decided for.
    """
    attempts = _Attempts(set())
    one = _Relay(fleet, request, context, decision_id, want, attempts)
    fleet.retries.earn()
    until = time.monotonic() + _patience(fleet, context)
    line = fleet.lines[decision.tier]
    # Who comes while others wait joins them: room goes to the first in line.
    if not line or fleet.admission.queue_seconds <= 0:
        async with aclosing(one.try_all(decision)) as relayed:
            async for item in relayed:
                yield item
        if attempts.complete:
            return
        if not _is_full(fleet, decision, attempts) or until <= time.monotonic():
            raise _nobody(fleet, decision, attempts)
    with line.ticket(request.priority, request.cache_salt, outstanding_tokens(request)) as ticket:
        while not attempts.complete:
            await line.turn(ticket, until - time.monotonic())
            if review is not None:
                decision = _denser(decision, review())
                request.dense_reasoning = decision.dense_reasoning
            attempts.tried.clear()
            attempts.overloaded = False
            # The next in line need not wait for this one's first token.
            async with aclosing(one.try_all(decision, sent=partial(line.leave, ticket))) as relayed:
                async for item in relayed:
                    yield item
            if not attempts.complete:
                if not _is_full(fleet, decision, attempts):
                    raise _nobody(fleet, decision, attempts)
                line.rejoin(ticket)


def _denser(decision: Decision, now: Decision) -> Decision:
    """A kill switch that was thrown meanwhile counts; what policy has loosened does not."""
    reasoning = decision.dense_reasoning or now.dense_reasoning
    return replace(now if now.tier < decision.tier else decision, dense_reasoning=reasoning)


def _patience(fleet: Fleet, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Seconds that a request may wait in line: short of the caller's deadline, so that he is told why."""
    left = context.time_remaining()
    return fleet.admission.queue_seconds if left is None else min(fleet.admission.queue_seconds, 0.9 * left)


def _is_full(fleet: Fleet, decision: Decision, attempts: _Attempts) -> bool:
    """Whether waiting may help: some worker that may serve the request has no room now."""
    tiers = (decision.tier, *decision.fallback)
    states = [worker.state for tier in tiers for worker in fleet.of(tier, decision.dense_reasoning)]
    reserved = any(worker.state is State.READY and worker.target not in attempts.tried
                   for tier in decision.fallback for worker in fleet.of(tier, decision.dense_reasoning))  # fmt: skip
    return attempts.overloaded or reserved or State.FULL in states


def place(fleet: Fleet, decision: Decision, want: Callable[[], Want] | None = None) -> tuple[Worker, Decision]:
    """The worker that a request would be sent to now, and the decision as served by it.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
    """
    for tier in (decision.tier, *decision.fallback):
        if worker := _pick(fleet, tier, decision, set(), want):
            return worker, _served(decision, tier, fleet)
    raise _nobody(fleet, decision, _Attempts(set()))


def _pick(
    fleet: Fleet, tier: Tier, decision: Decision, tried: set[str], want: Callable[[], Want] | None
) -> Worker | None:
    spilled, reasoning = tier is not decision.tier, decision.dense_reasoning
    return fleet.pick(tier, tried, spilled=spilled, dense_reasoning=reasoning, want=want)


def _check_report(completion: inference_pb2.Completion, worker: Worker) -> None:
    """Takes a sparse worker out that does not say what it attended."""
    if worker.must_prove and not (completion.HasField("sparsity") and completion.sparsity.kernel_calls):
        worker.distrust("an answer of it came without a sparsity report")


def _served(decision: Decision, tier: Tier, fleet: Fleet) -> Decision:
    """The decision as served at ``tier``."""
    if tier is decision.tier:
        return decision
    own = fleet.of(decision.tier)
    unproven = any(worker.state is State.UNPROVEN for worker in own)
    reason = Reason.MISSING_TELEMETRY if unproven else Reason.TIER_UNAVAILABLE
    what = "prove what they attend" if unproven else "answer"
    if decision.dense_reasoning and own and not fleet.of(decision.tier, dense_reasoning=True):
        what = "decode reasoning densely"
    detail = f"policy gives {decision.tier.word}, whose workers could not {what}; {decision.explanation}"
    return replace(decision, tier=tier, reason=reason, explanation=detail)


def _nobody(fleet: Fleet, decision: Decision, attempts: _Attempts) -> SparsityError:
    words = " or ".join(tier.word for tier in (decision.tier, *decision.fallback))
    last = f"; last: {attempts.last_problem}" if attempts.last_problem else ""
    if _is_full(fleet, decision, attempts):
        return OverloadedError(f"every {words} worker is full; try again{last}")
    return UnavailableError(f"no {words} worker can be reached{last}")
