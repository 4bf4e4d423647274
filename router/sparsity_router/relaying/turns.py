"""Waiting for room before a worker is named to a client that brings its request itself."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import grpc
from sparsity_policies.model import Decision
from sparsity_rpc.errors import OverloadedError

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.needs import Need, Needs
from sparsity_router.fleet.workers import Worker
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.relaying.placing import need_of, place
from sparsity_router.relaying.worker_request import WorkerRequest, outstanding_tokens, read_needs


def patience(fleet: Fleet, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Seconds that a request may wait in the queue: short of the caller's deadline, so that he is told why."""
    left = context.time_remaining()
    return fleet.admission.queue_seconds if left is None else min(fleet.admission.queue_seconds, 0.9 * left)


async def follow_policies(fleets: Collection[Fleet], follower: PolicyFollower) -> None:
    """Lets those who wait for room meet each change of policies and overrides, for as long as it runs."""
    async for _ in follower.snapshots():
        for fleet in fleets:
            await fleet.reconsider()


async def place_in_turn(
    fleet: Fleet,
    request: WorkerRequest,
    context: grpc.aio.ServicerContext[Any, Any],
) -> tuple[Worker, Decision, Decision]:
    """The worker that takes a request that its client brings, the decision as served by it, and as policy gave it.

    Where every worker is full it waits in the queue like those that are relayed.

    Raises:
        OverloadedError: when there is no room in time.
        UnavailableError: when no worker can be reached, or none takes leases.
        InvalidRequestError: when all lack what the request needs.
    """
    message, review = request.message, request.decided.review
    until = time.monotonic() + patience(fleet, context)
    asks = await read_needs(message)
    await review.catch_up()
    decision = review()

    def needs() -> Needs:
        # A client comes to the worker by a lease.
        found = fleet.lacking(asks, message)
        return found._replace(fields=found.fields | {Need.LEASE})

    def now() -> tuple[Worker, Decision, Decision]:
        nonlocal decision
        decision = review()
        message.dense_reasoning = decision.dense_reasoning
        return *place(fleet, decision, request.want, needs()), decision

    queue = fleet.queues[decision.tier]
    if not queue or until <= time.monotonic():
        try:
            return now()
        except OverloadedError:
            if until <= time.monotonic():
                raise
    need, tokens = need_of(decision, needs()), outstanding_tokens(message)
    with queue.ticket(message.priority, message.cache_salt, tokens, need) as ticket:
        while True:
            await queue.turn(ticket, until - time.monotonic())
            if not review.is_quick:
                async with queue.aside(ticket, until - time.monotonic()):
                    await review.catch_up()
                    decision = review()
                    ticket.need = need_of(decision, needs())
                continue
            with suppress(OverloadedError):
                found = now()
                queue.leave(ticket)
                return found
            ticket.need = need_of(decision, needs())
            queue.rejoin(ticket, refused=False)
