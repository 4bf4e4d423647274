"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from types import TracebackType

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2_grpc
from sparsity_rpc import tracing
from sparsity_rpc.errors import SparsityError
from sparsity_rpc.methods import EXPLAIN, GENERATE
from sparsity_rpc.silence import spoken
from sparsity_rpc.status import from_worker, to_error
from sparsity_rpc.tls import ClientTls, open_channel

from sparsity_client.wire.direct import (
    broken,
    falls_back,
    fell_back,
    remaining,
    timeouts,
    with_decision,
    worker_request,
)
from sparsity_client.wire.spans import answered, asked
from sparsity_client.wire.worker_channels import WorkerChannels

_tracer = tracing.tracer("sparsity.client")


class WireClient:
    """One channel to a router at ``target``; safe to share between threads.

    Args:
        target: `host:port`, or any gRPC target.
        tls: what to trust, for routers and workers alike; None is plain text.
        key: sent to the router as `authorization: Bearer KEY`, an API key or a JWT.
    """

    def __init__(self, target: str, *, tls: ClientTls | None = None, key: str | None = None) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._target = target
        self.channel = open_channel(target, tls)
        self._workers = WorkerChannels(lambda address: open_channel(address, tls))
        self._inference: inference_pb2_grpc.InferenceServiceStub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels; calls in flight are cancelled."""
        for channel in (self.channel, *self._workers.all()):
            channel.close()

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout: float | None = None, *, direct: bool = False
    ) -> Iterator[inference_pb2.GenerateResponse]:
        """Streams a completion; the last response has `completion` set. Leaving early cancels it.

        Args:
            request: see :func:`make_request`.
            timeout: seconds for the whole stream.
            direct: streams from the worker that the router names, and by way of the router where that fails before
                the first message. The client must reach the workers.

        Raises:
            SparsityError: the kind tells what failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with tracing.span(_tracer, "client.generate", trace.SpanKind.CLIENT, GENERATE) as span:
            asked(span, request, self._target)
            begun, routed, metadata = False, list[str](), self._outgoing()
            if direct:
                try:
                    for response in self._direct(request, deadline, routed):
                        begun = True
                        answered(span, response)
                        yield response
                    return
                except SparsityError as error:
                    if begun or not falls_back(error):
                        raise broken(error) if begun else error from None
                    metadata += fell_back(routed, error)
            with closing(self._relayed(request, deadline, metadata)) as responses:
                for response in responses:
                    answered(span, response)
                    yield response

    def _relayed(
        self, request: inference_pb2.GenerateRequest, deadline: float | None, metadata: tuple[tuple[str, str], ...]
    ) -> Generator[inference_pb2.GenerateResponse]:
        call = self._inference.Generate(request, timeout=remaining(deadline), metadata=metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise to_error(error) from error
        finally:
            call.cancel()

    def _direct(
        self, request: inference_pb2.GenerateRequest, deadline: float | None, routed: list[str]
    ) -> Iterator[inference_pb2.GenerateResponse]:
        asked = inference_pb2.RouteRequest(request=request)
        try:
            route = self._inference.Route(asked, timeout=remaining(deadline), metadata=self._outgoing())
            routed.append(route.decision.decision_id)
            with self._worker(route.endpoint) as worker:
                # The lease is what a worker takes; the key is for routers.
                context = tracing.outgoing()
                call = worker.Generate(worker_request(route), timeout=remaining(deadline), metadata=context)
                try:
                    for message in spoken(call, timeouts(route)):
                        yield with_decision(message.response, route)
                finally:
                    call.cancel()
        except grpc.RpcError as error:
            raise from_worker(error) from error

    def _outgoing(self) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, *tracing.outgoing())

    @contextmanager
    def _worker(self, endpoint: str) -> Iterator[worker_pb2_grpc.WorkerServiceStub]:
        channel = self._workers.borrow(endpoint)
        try:
            yield worker_pb2_grpc.WorkerServiceStub(channel)
        finally:
            for idle in self._workers.give_back(endpoint):
                idle.close()

    def report_outcome(
        self,
        decision_id: str,
        score: float,
        metric: str,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = 5.0,
    ) -> None:
        """Reports how good an answer was.

        Args:
            decision_id: of the completion's decision.
            score: in [0, 1], by a measure of your own.
            metric: the measure, such as `exact_match`.
            labels: free.
            timeout: seconds.

        Raises:
            SparsityError: the kind tells what failed; NotFoundError when the decision is not in the log.
        """
        request = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, score=score, metric=metric, labels=labels)
        try:
            self._inference.ReportOutcome(request, timeout=timeout, metadata=self._outgoing())
        except grpc.RpcError as error:
            raise to_error(error) from error

    def explain(
        self, request: inference_pb2.GenerateRequest, timeout: float | None = 30.0
    ) -> inference_pb2.ExplainResponse:
        """The decision that :meth:`generate` would get now, and how it comes to be.

        Raises:
            SparsityError: the kind tells what failed.
        """
        with tracing.span(_tracer, "client.explain", trace.SpanKind.CLIENT, EXPLAIN) as span:
            asked(span, request, self._target)
            explain = inference_pb2.ExplainRequest(request=request)
            try:
                return self._inference.Explain(explain, timeout=timeout, metadata=self._outgoing())
            except grpc.RpcError as error:
                raise to_error(error) from error
