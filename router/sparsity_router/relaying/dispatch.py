"""Sends one request to one worker, with the lease that it takes it by, and gives its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from opentelemetry import trace
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Tier
from sparsity_rpc import tracing
from sparsity_serving import telemetry
from sparsity_serving.access.lease_keys import LeaseKeys
from sparsity_serving.access.leases import sign

from sparsity_router.fleet.contracts import generate_method
from sparsity_router.fleet.patience import spoken
from sparsity_router.fleet.workers import Worker
from sparsity_router.relaying.worker_request import outstanding_tokens

_tracer = tracing.tracer("sparsity.router")


class OvertakenError(Exception):
    """Policy took the tier from a request just before its worker was asked, or the worker no longer proves it.

    Args:
        problem: in words.
        by_worker: whether it is the worker's doing, which then is not picked for the request again.
    """

    def __init__(self, problem: str, *, by_worker: bool = False) -> None:
        super().__init__(problem)
        self.by_worker = by_worker


async def dispatch(
    worker: Worker,
    request: worker_pb2.WorkerServiceGenerateRequest,
    tier: Tier,
    attempt: int,
    timeout: float | None,
    lease: tuple[LeaseKeys | None, str],
    allows: Callable[[Tier], bool] = lambda tier: True,
) -> AsyncGenerator[inference_pb2.GenerateResponse]:
    """Streams the worker's messages; closing the generator cancels the worker's request.

    Args:
        worker: that is asked.
        request: in its terms.
        tier: that it serves the request at.
        attempt: number of this try, which makes its id unique.
        timeout: seconds that are left of the client's deadline; None without one.
        lease: the keys to sign with, or None, and the decision's id.
        allows: whether policy still gives the request the tier; asked when nothing is left to wait for.

    Raises:
        OvertakenError: when it does not, or the worker came back as another, without the tier, or without its proof.
        grpc.aio.AioRpcError: as the worker answers; INTERNAL where it says nothing for too long, or cannot be read.
    """
    if not allows(tier):
        raise OvertakenError(f"{worker.name} was not asked: policy gives {tier.word} no more")
    if tier not in worker.trusted:
        problem = f"{worker.name} was not asked: it no longer serves and proves {tier.word}"
        raise OvertakenError(problem, by_worker=True)
    own = worker_pb2.WorkerServiceGenerateRequest()
    own.CopyFrom(request)
    own.request_id = f"{request.request_id}.{attempt}"
    own.tier = tier.wire
    keys, decision_id = lease
    if keys is not None:
        own.lease.CopyFrom(sign(keys, own, worker.name, decision_id))
    kind, method = trace.SpanKind.CLIENT, generate_method(worker.stub)
    with tracing.detached_span(_tracer, "router.dispatch", kind, method) as (span, metadata):
        if span.is_recording():
            span.set_attributes(tracing.server_of(worker.target))
            span.set_attributes(
                {telemetry.WORKER_ID: worker.name, telemetry.TIER: tier.word, telemetry.ATTEMPT: attempt}
            )
        with worker.dispatched(own.request_id, tier, outstanding_tokens(own)):
            call = worker.stub.Generate(own, timeout=timeout, metadata=metadata)
            try:
                async with aclosing(spoken(call, tier, worker.patience)) as messages:
                    async for message in messages:
                        yield message.response
            finally:
                # Ends the worker's engine request when the client is gone.
                call.cancel()
