"""Waiting for room before a worker is named to a client that brings its request itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from sparsity.v1 import worker_pb2
from sparsity_policies.model import Decision
from sparsity_rpc.errors import OverloadedError

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.picking import Want
from sparsity_router.fleet.workers import Worker
from sparsity_router.relaying.dispatch import outstanding_tokens
from sparsity_router.relaying.placing import need_of, place


def patience(fleet: Fleet, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Seconds that a request may wait in line: short of the caller's deadline, so that he is told why."""
    left = context.time_remaining()
    return fleet.admission.queue_seconds if left is None else min(fleet.admission.queue_seconds, 0.9 * left)


async def place_in_turn(
    fleet: Fleet,
    request: worker_pb2.WorkerServiceGenerateRequest,
    review: Callable[[], Decision],
    context: grpc.aio.ServicerContext[Any, Any],
    want: Callable[[], Want],
) -> tuple[Worker, Decision, Decision]:
    """The worker that takes a request that its client brings, the decision as served by it, and as policy gave it.

    Where every worker is full it waits in line like those that are relayed.

    Raises:
        OverloadedError: when there is no room in time.
        UnavailableError: when no worker can be reached.
    """
    until, decision = time.monotonic() + patience(fleet, context), review()

    def now() -> tuple[Worker, Decision, Decision]:
        nonlocal decision
        decision = review()
        request.dense_reasoning = decision.dense_reasoning
        return *place(fleet, decision, want), decision

    line = fleet.lines[decision.tier]
    if not line or until <= time.monotonic():
        try:
            return now()
        except OverloadedError:
            if until <= time.monotonic():
                raise
    with line.ticket(request.priority, request.cache_salt, outstanding_tokens(request), need_of(decision)) as ticket:
        while True:
            await line.turn(ticket, until - time.monotonic())
            with suppress(OverloadedError):
                found = now()
                line.leave(ticket)
                return found
            ticket.need = need_of(decision)
            line.rejoin(ticket, refused=False)
