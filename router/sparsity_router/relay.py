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
from sparsity import telemetry
from sparsity.errors import (
    OverloadedError,
    SparsityError,
    StreamBrokenError,
    UnavailableError,
)
from sparsity.leases import sign
from sparsity.status import to_error
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision, Reason, Tier

from sparsity_router.fleet import Fleet
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
    refused: bool = False
    failed: bool = False
    complete: bool = False
    last_problem: str = ""


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
    fleet.retries.earn()
    until = time.monotonic() + _patience(fleet, context)
    line = fleet.lines[decision.tier]
    # Who comes while others wait joins them: room goes to the first in line.
    if not line or fleet.admission.queue_seconds <= 0:
        async with aclosing(_try_all(fleet, request, decision, context, attempts, decision_id, want)) as relayed:
            async for item in relayed:
                yield item
        if attempts.complete:
            return
        if not _is_full(fleet, decision, attempts) or until <= time.monotonic():
            raise _nobody(fleet, decision, attempts)
    with line.ticket(request.priority, request.cache_salt, outstanding_tokens(request)) as ticket:
        while not attempts.complete:
            await line.turn(ticket, until - time.monotonic())
            if review is not None and (now := review()).tier < decision.tier:
                # A kill switch that was thrown meanwhile counts; what policy has loosened does not.
                decision = now
            attempts.tried.clear()
            attempts.overloaded = False
            # The next in line need not wait for this one's first token.
            sent = partial(line.leave, ticket)
            trying = _try_all(fleet, request, decision, context, attempts, decision_id, want, sent)
            async with aclosing(trying) as relayed:
                async for item in relayed:
                    yield item
            if not attempts.complete:
                if not _is_full(fleet, decision, attempts):
                    raise _nobody(fleet, decision, attempts)
                line.rejoin(ticket)


def _patience(fleet: Fleet, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Seconds that a request may wait in line: short of the caller's deadline, so that he is told why."""
    left = context.time_remaining()
    return fleet.admission.queue_seconds if left is None else min(fleet.admission.queue_seconds, 0.9 * left)


async def _try_all(
    fleet: Fleet,
    request: worker_pb2.WorkerServiceGenerateRequest,
    decision: Decision,
    context: grpc.aio.ServicerContext[Any, Any],
    attempts: _Attempts,
    decision_id: str,
    want: Callable[[], Want] | None,
    sent: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Relayed]:
    """Tries every worker that may serve the request, the decided tier's first; ends without a message when none did."""
    for tier in (decision.tier, *decision.fallback):
        served = _served(decision, tier, fleet)
        while worker := fleet.pick(tier, attempts.tried, spilled=tier is not decision.tier, want=want):
            # Waiting for room is no retry; asking another worker after a failure is.
            if attempts.failed and not fleet.retries.spend():
                problem = f"the retry budget is used up; last: {attempts.last_problem}"
                raise UnavailableError(problem)
            attempts.tried.add(worker.target)
            attempts.count += 1
            sent()
            first, attempts.refused = True, False
            stream = _stream(worker, request, tier, attempts.count, context, (fleet.lease_key, decision_id))
            try:
                async for response in stream:
                    first = False
                    if response.HasField("completion"):
                        attempts.complete = True
                        worker.breaker.success()
                        _check_report(response.completion, worker, tier)
                    yield Relayed(response, served)
                if attempts.complete:
                    return
                problem = "ended its stream without a completion"
            except grpc.aio.AioRpcError as error:
                # A deadline or a bad request is no fault of the worker, whenever it shows.
                if first or error.code() in _FINAL:
                    _judge(error, worker, attempts)
                problem = f"{error.code().name}: {error.details()}"
            finally:
                await stream.aclose()
            if not attempts.refused:
                worker.breaker.failure()
                attempts.failed = True
            if not first:
                worker.failed(problem)
                told = (
                    f"worker {worker.name} failed mid-stream: {problem}; what was sent stands, ask again for the rest"
                )
                raise StreamBrokenError(told)
            attempts.last_problem = f"{worker.name}: {problem}"


def _is_full(fleet: Fleet, decision: Decision, attempts: _Attempts) -> bool:
    """Whether waiting may help: some worker that may serve the request has no room now."""
    tiers = (decision.tier, *decision.fallback)
    states = [worker.state for tier in tiers for worker in fleet.of(tier)]
    reserved = any(worker.state is State.READY and worker.target not in attempts.tried
                   for tier in decision.fallback for worker in fleet.of(tier))  # fmt: skip
    return attempts.overloaded or reserved or State.FULL in states


def outstanding_tokens(request: worker_pb2.WorkerServiceGenerateRequest) -> int:
    """Tokens that a worker has to work on for a request, at most."""
    return len(request.prompt.ids) + request.text.max_tokens + request.sampling.max_new_tokens


def place(fleet: Fleet, decision: Decision, want: Callable[[], Want] | None = None) -> tuple[Worker, Decision]:
    """The worker that a request would be sent to now, and the decision as served by it.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
    """
    for tier in (decision.tier, *decision.fallback):
        if worker := fleet.pick(tier, set(), spilled=tier is not decision.tier, want=want):
            return worker, _served(decision, tier, fleet)
    raise _nobody(fleet, decision, _Attempts(set()))


def _check_report(completion: inference_pb2.Completion, worker: Worker, tier: Tier) -> None:
    """Takes a sparse worker out that does not say what it attended."""
    if tier is not Tier.DENSE and not (completion.HasField("sparsity") and completion.sparsity.kernel_calls):
        worker.distrust("an answer of it came without a sparsity report")


def _served(decision: Decision, tier: Tier, fleet: Fleet) -> Decision:
    """The decision as served at ``tier``."""
    if tier is decision.tier:
        return decision
    unproven = any(worker.state is State.UNPROVEN for worker in fleet.of(decision.tier))
    reason = Reason.MISSING_TELEMETRY if unproven else Reason.TIER_UNAVAILABLE
    what = "prove what they attend" if unproven else "answer"
    detail = f"policy gives {decision.tier.word}, whose workers could not {what}; {decision.explanation}"
    return replace(decision, tier=tier, reason=reason, explanation=detail)


async def _stream(
    worker: Worker,
    request: worker_pb2.WorkerServiceGenerateRequest,
    tier: Tier,
    attempt: int,
    context: grpc.aio.ServicerContext[Any, Any],
    lease: tuple[bytes | None, str],
) -> AsyncGenerator[inference_pb2.GenerateResponse]:
    own = worker_pb2.WorkerServiceGenerateRequest()
    own.CopyFrom(request)
    own.request_id = f"{request.request_id}.{attempt}"
    own.tier = tier.value  # type: ignore[assignment]
    key, decision_id = lease
    if key is not None:
        own.lease.CopyFrom(sign(key, own, worker.name, decision_id))
    with telemetry.span(_tracer, "router.dispatch", trace.SpanKind.CLIENT) as span:
        span.set_attributes({telemetry.WORKER_ID: worker.name, telemetry.TIER: tier.word, telemetry.ATTEMPT: attempt})
        with worker.dispatched(own.request_id, outstanding_tokens(own)):
            call = worker.stub.Generate(own, timeout=context.time_remaining(), metadata=telemetry.outgoing())
            try:
                async for message in call:
                    yield message.response
            finally:
                # Ends the worker's engine request when the client is gone.
                call.cancel()


def _judge(error: grpc.aio.AioRpcError, worker: Worker, attempts: _Attempts) -> None:
    """Decides whether another worker may be tried; raises when none may."""
    code, details = error.code(), error.details() or ""
    attempts.refused = code is _OVERLOAD
    if code in _FINAL:
        raise to_error(error) from error
    if code is _OVERLOAD:
        attempts.overloaded = True
        worker.refused()
    else:
        worker.failed(f"{code.name}: {details}")


def _nobody(fleet: Fleet, decision: Decision, attempts: _Attempts) -> SparsityError:
    words = " or ".join(tier.word for tier in (decision.tier, *decision.fallback))
    last = f"; last: {attempts.last_problem}" if attempts.last_problem else ""
    if _is_full(fleet, decision, attempts):
        return OverloadedError(f"every {words} worker is full; try again{last}")
    return UnavailableError(f"no {words} worker can be reached{last}")
