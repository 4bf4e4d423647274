"""The asynchronous client, for `asyncio` services."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType

import grpc
from opentelemetry import trace
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2_grpc
from sparsity_rpc import tracing
from sparsity_rpc.errors import SparsityError
from sparsity_rpc.methods import EXPLAIN, GENERATE
from sparsity_rpc.reading import readable
from sparsity_rpc.silence import spoken_aio
from sparsity_rpc.status import from_worker, to_error
from sparsity_rpc.tls import ClientTls, open_aio_channel

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


class AsyncWireClient:
    """One channel to a router at ``target``, for one event loop; arguments and methods are those of `WireClient`."""

    def __init__(self, target: str, *, tls: ClientTls | None = None, key: str | None = None) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._target = target
        self.channel = open_aio_channel(target, tls)
        self._workers = WorkerChannels(lambda address: open_aio_channel(address, tls))
        self._inference: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(
            self.channel
        )

    async def __aenter__(self) -> AsyncWireClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls in flight are cancelled."""
        for channel in (self.channel, *self._workers.all()):
            await channel.close()

    async def generate(
        self, request: inference_pb2.GenerateRequest, timeout: float | None = None, *, direct: bool = False
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """Streams a completion; see `WireClient.generate`. Close it (`contextlib.aclosing`) to leave early.

        Raises:
            SparsityError: the kind tells what failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with tracing.span(_tracer, "client.generate", trace.SpanKind.CLIENT, GENERATE) as span:
            asked(span, request, self._target)
            begun, routed, metadata = False, list[str](), self._outgoing()
            if direct:
                try:
                    async with aclosing(self._direct(request, deadline, routed)) as responses:
                        async for response in responses:
                            begun = True
                            answered(span, response)
                            yield response
                    return
                except SparsityError as error:
                    if begun or not falls_back(error):
                        raise broken(error) if begun else error from None
                    metadata += fell_back(routed, error)
            async with aclosing(self._relayed(request, deadline, metadata)) as responses:
                async for response in responses:
                    answered(span, response)
                    yield response

    async def _relayed(
        self, request: inference_pb2.GenerateRequest, deadline: float | None, metadata: tuple[tuple[str, str], ...]
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        call = self._inference.Generate(request, timeout=remaining(deadline), metadata=metadata)
        try:
            async for response in call:
                yield readable(response)
        except grpc.RpcError as error:
            raise to_error(error) from error
        finally:
            call.cancel()

    async def _direct(
        self, request: inference_pb2.GenerateRequest, deadline: float | None, routed: list[str]
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        asked = inference_pb2.RouteRequest(request=request)
        try:
            named = self._inference.Route(asked, timeout=remaining(deadline), metadata=self._outgoing())
            route = readable(await named)
            routed.append(route.decision.decision_id)
            async with self._worker(route.endpoint) as worker:
                # The lease is what a worker takes; the key is for routers.
                context = tracing.outgoing()
                call = worker.Generate(worker_request(route), timeout=remaining(deadline), metadata=context)
                try:
                    async with aclosing(spoken_aio(call, timeouts(route))) as messages:
                        async for message in messages:
                            yield with_decision(message.response, route)
                finally:
                    call.cancel()
        except grpc.RpcError as error:
            raise from_worker(error) from error

    def _outgoing(self) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, *tracing.outgoing())

    @asynccontextmanager
    async def _worker(self, endpoint: str) -> AsyncIterator[worker_pb2_grpc.WorkerServiceAsyncStub]:
        channel = self._workers.borrow(endpoint)
        try:
            yield worker_pb2_grpc.WorkerServiceStub(channel)
        finally:
            for idle in self._workers.give_back(endpoint):
                await idle.close()

    async def explain(
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
                return readable(await self._inference.Explain(explain, timeout=timeout, metadata=self._outgoing()))
            except grpc.RpcError as error:
                raise to_error(error) from error

    async def report_outcome(
        self,
        decision_id: str,
        score: float,
        metric: str,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = 5.0,
    ) -> None:
        """Reports how good an answer was; see `WireClient.report_outcome`.

        Raises:
            SparsityError: the kind tells what failed.
        """
        report = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, score=score, metric=metric, labels=labels)
        try:
            readable(await self._inference.ReportOutcome(report, timeout=timeout, metadata=self._outgoing()))
        except grpc.RpcError as error:
            raise to_error(error) from error
