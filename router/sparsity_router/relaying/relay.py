"""Sends a decided request to a worker and relays its stream.

Before the first message a failed worker is replaced by a peer, then by a denser tier; after it nothing is replayed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision, Tier
from sparsity_rpc.errors import InvalidRequestError, StreamBrokenError, UnavailableError
from sparsity_rpc.status import died, from_worker, to_error

from sparsity_router.fleet.answers import judge
from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.needs import Need
from sparsity_router.fleet.patience import SilentError
from sparsity_router.fleet.workers import Worker
from sparsity_router.relaying.dispatch import OvertakenError, dispatch
from sparsity_router.relaying.hedging import Attempt, Hedge
from sparsity_router.relaying.placing import Tried, is_full, need_of, nobody, pick, served
from sparsity_router.relaying.turns import patience
from sparsity_router.relaying.worker_request import WorkerRequest, outstanding_tokens, read_needs

_OVERLOAD, _COUNT = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE
# What the same request would meet on every worker.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    _COUNT,
}
# Fields that the router sets, by what its worker said that it serves.
_PICKED_BY = ("tier", "dense_reasoning")
# A request that so many workers died of, or dense ones hung on, is taken for the cause.
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
        request: WorkerRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        tried: Tried,
        needs: frozenset[Need],
    ) -> None:
        self._fleet = fleet
        self._request = request
        self._review = request.decided.review
        self._context = context
        self._needs = needs
        self.tried = tried
        self.decision = self._review()

    async def try_all(self, sent: Callable[[], None] = lambda: None) -> AsyncGenerator[Relayed]:
        """Tries every worker that may serve it, the decided tier's first; ends without a message when none did.

        Raises:
            UnavailableError: when retries have used up their budget.
            StreamBrokenError: when a worker failed after its first message, or two died, or hung, with it in flight.
        """
        tried, seconds = self.tried, self._fleet.admission.hedge_seconds
        while (choice := await self._choose()) is not None:
            # Waiting for room is no retry; asking another worker after a failure is.
            if tried.failed and not self._fleet.retries.spend():
                problem = f"the retry budget is used up; last: {tried.last_problem}"
                raise UnavailableError(problem)
            sent()
            first = True
            attempt = self._open(*choice)
            second = partial(self._second, attempt.served.tier)
            hedge = Hedge(attempt, second, seconds, partial(self._fell, first=True)) if seconds else None
            stream = hedge.responses() if hedge else attempt.stream
            with tried.answers.asked(self):
                try:
                    async for response in stream:
                        attempt = hedge.attempt if hedge else attempt
                        if first:
                            tried.answers.speaks(self, attempt.worker.target)
                        first = False
                        if response.HasField("completion"):
                            tried.complete = True
                            worker, tier = attempt.worker, attempt.served.tier
                            worker.breakers[tier].success()
                            judge(worker, tier, response.completion)
                        yield Relayed(response, attempt.served, attempt.policy)
                    if tried.complete:
                        return
                    error: Exception = StopAsyncIteration()
                except (grpc.aio.AioRpcError, OvertakenError) as failure:
                    if tried.complete:
                        # The answer is whole, however its stream ends.
                        return
                    error = failure
                finally:
                    await stream.aclose()
            self._fell(hedge.attempt if hedge else attempt, error, first=first)

    @property
    def must_wait(self) -> bool:
        """Whether something else than room is to be waited for before a worker is chosen."""
        return not self._review.is_quick or self.tried.answers.must_wait

    async def catch_up(self) -> None:
        """Waits for it: for long reading, and for another answer that a worker may be dying of."""
        while self.must_wait:
            await self._review.catch_up()
            await self.tried.answers.turn()

    def need(self) -> Hashable:
        """What it needs of workers, as it is decided now."""
        return need_of(self._decide(), self.tried.needs)

    def _decide(self) -> Decision:
        """The decision as of now: nobody is asked by an older one."""
        self.decision = self._review()
        self._request.message.dense_reasoning = self.decision.dense_reasoning
        self.tried.needs = self._fleet.lacking(self._needs, self._request.message)
        return self.decision

    async def _choose(self) -> tuple[Worker, Tier] | None:
        """The next worker to ask, and at what tier; None when nobody is left."""
        await self.catch_up()
        decision = self._decide()
        for tier in (decision.tier, *decision.fallback):
            if worker := self._pick(tier):
                return worker, tier
        return None

    def _second(self, tier: Tier) -> Attempt | None:
        """A second worker beside one of ``tier`` that says nothing: of that tier, while policy still allows it."""
        # One more may die of a request that one died of: not two at once.
        if not self._review.is_quick or self.tried.answers.deaths:
            return None
        at = tier if self._allows(tier) else self.decision.tier
        other = self._pick(at)
        return self._open(other, at) if other and self._fleet.retries.spend() else None

    def _allows(self, tier: Tier) -> bool:
        # What would have to be read for long is chosen anew, after it was.
        if not self._review.is_quick:
            return False
        decision = self._decide()
        return tier is decision.tier or tier in decision.fallback

    def _pick(self, tier: Tier) -> Worker | None:
        return pick(self._fleet, tier, self.decision, self.tried, self._request.want)

    def _open(self, worker: Worker, tier: Tier) -> Attempt:
        self.tried.targets.add(worker.target)
        self.tried.count += 1
        self.tried.answers.readers += 1
        lease, left = (self._fleet.lease_keys, self._request.decided.decision_id), self._context.time_remaining()
        stream = dispatch(worker, self._request.message, tier, self.tried.count, left, lease, self._allows)
        # Asked again, so that what is told of the request does not hang on what picked its worker.
        return Attempt(worker, stream, served(self.decision, tier, self._fleet, self.tried), self._review())

    def _fell(self, attempt: Attempt, error: Exception, *, first: bool) -> None:
        """Takes note of a stream that failed; raises where nobody else may be tried.

        Args:
            attempt: whose stream it was.
            error: how it failed; StopAsyncIteration where it ended without a completion.
            first: whether no message had come.
        """
        tried, worker, refused = self.tried, attempt.worker, False
        if isinstance(error, OvertakenError):
            tried.answers.readers -= 1
            if not error.by_worker:
                tried.targets.discard(worker.target)
            return
        problem = "ended its stream without a completion"
        if isinstance(error, grpc.aio.AioRpcError):
            problem = f"{error.code().name}: {error.details()}"
            # A deadline or a bad request is no fault of the worker, whenever it shows; a count, only before it answers.
            if error.code() in _FINAL and (first or error.code() is not _COUNT) and not _came_back_with_others(error):
                raise from_worker(error) from error
            refused = first and error.code() is _OVERLOAD
            if refused:
                tried.overloaded = True
                worker.refused()
            elif first:
                worker.failed(problem)
        if not refused:
            worker.breakers[attempt.served.tier].failure()
            tried.failed = True
        if not first:
            worker.failed(problem)
            told = f"worker {worker.name} failed mid-stream: {problem}; what was sent stands, ask again for the rest"
            raise StreamBrokenError(told)
        tried.last_problem = f"{worker.name}: {problem}"
        # What a sparse worker hangs on, a denser one may answer; what a dense one hangs on may hang them all.
        if died(error) or (isinstance(error, SilentError) and attempt.served.tier is Tier.DENSE):
            tried.answers.died(worker.target, attempt.began)
        elif refused or (isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE):
            # It is full, is going away, or was never reached.
            tried.answers.readers -= 1
        if (deaths := tried.answers.deaths) >= _MOST_DEATHS:
            told = f"{deaths} workers died or fell silent with this request in flight; it is not tried on another"
            raise StreamBrokenError(f"{told}; last: {tried.last_problem}")


def _came_back_with_others(error: grpc.RpcError) -> bool:
    """Whether a worker refused what it was picked for, as one does that came back with others: no caller's mistake."""
    found = to_error(error)
    return isinstance(found, InvalidRequestError) and found.field in _PICKED_BY


async def relay(
    fleet: Fleet, request: WorkerRequest, context: grpc.aio.ServicerContext[Any, Any], tried: Tried
) -> AsyncGenerator[Relayed]:
    """Relays the stream of the first worker that answers.

    Args:
        fleet: the workers.
        request: in their terms; its decision is reviewed before every attempt.
        context: of the client's call.
        tried: what was tried for it before, and is from now on.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
        StreamBrokenError: when a worker fails after its first message, or a second one dies before it.
        InvalidRequestError: when a worker refuses the request as invalid, or all lack what it needs.
        TokenCountError: when the prompt's tokens lie outside the interval that it was decided for.
    """
    if (needs := tried.answers.needs) is None:
        needs = tried.answers.needs = await read_needs(request.message)
    await request.decided.review.catch_up()
    one = _Relay(fleet, request, context, tried, needs)
    fleet.retries.earn()
    until = time.monotonic() + patience(fleet, context)
    # Who comes while others wait joins them: room goes to the first in the queue.
    if not fleet.queues[one.decision.tier] or fleet.admission.queue_seconds <= 0:
        async with aclosing(one.try_all()) as relayed:
            async for item in relayed:
                yield item
        if tried.complete:
            return
        if not is_full(fleet, one.decision, tried) or until <= time.monotonic():
            raise nobody(fleet, one.decision, tried)
    queue, message = fleet.queues[one.decision.tier], request.message
    need = need_of(one.decision, fleet.lacking(needs, message))
    with queue.ticket(message.priority, message.cache_salt, outstanding_tokens(message), need) as ticket:
        while not tried.complete:
            await queue.turn(ticket, until - time.monotonic())
            if one.must_wait:
                async with queue.aside(ticket, until - time.monotonic()):
                    await one.catch_up()
                    ticket.need = one.need()
                continue
            tried.targets.clear()
            tried.overloaded = False
            # The next in the queue need not wait for this one's first token.
            async with aclosing(one.try_all(sent=partial(queue.leave, ticket))) as relayed:
                async for item in relayed:
                    yield item
            if not tried.complete:
                if not is_full(fleet, one.decision, tried):
                    raise nobody(fleet, one.decision, tried)
                ticket.need = need_of(one.decision, tried.needs)
                queue.rejoin(ticket, refused=tried.overloaded)
