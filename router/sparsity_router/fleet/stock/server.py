"""A server of stock SGLang, asked as workers are: the calls of WorkerService that a router makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity.v1 import worker_pb2
from sparsity_rpc.errors import UnavailableError
from sparsity_rpc.reading import readable
from sparsity_rpc.status import as_call_error
from sparsity_serving.fields.logprobs import check_prompt_logprobs

from sparsity_router.fleet.needs import Need
from sparsity_router.fleet.stock.answers import StockAnswer
from sparsity_router.fleet.stock.call import Opened, StockCall
from sparsity_router.fleet.stock.contract import SERVICE, contract
from sparsity_router.fleet.stock.facts import Facts, started, tokenizer_digest
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.stock.requests import check_room, prompt_of, to_contract

# SGLang's contract has no seed, and its servers know no leases; expressions may take minutes a token, and nobody here
# says that it takes them.
_LACKS: Final = frozenset({Need.STRICT, Need.PATTERN, Need.SEED, Need.EXPRESSION, Need.LOGPROBS, Need.LEASE})
_NO_HEALTH: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
_ABORT_SECONDS: Final = 3.0
# How long the word of an engine that made a token for it is good.
_WELL_SECONDS = 30.0
# An archive of a tokenizer, bytes.
_MOST_ARCHIVE: Final = 2**28


class StockServer:
    """One server.

    Args:
        channel: to it.
        name: what it is called.
        model: that it is to serve.

    Attributes:
        doubt: why it may not be sent anything by now, by who watches it; asked once a prompt is tokens.
        objection: why it is not used for what it says that it is; empty where it is, or was not asked.
        lacks: what it cannot do.
        bounded_to: tokens that one request may have for lack of KV cache; 0 where the model's context is less, or it
            does not say.
    """

    def __init__(self, channel: grpc.aio.Channel, name: str, model: StockModel) -> None:
        self._channel, self._name, self._model = channel, name, model
        self._stub: Any = contract().stubs.SglangSchedulerStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._facts: Facts | None = None
        self._well_until = float("-inf")
        self._aborts: set[asyncio.Task[None]] = set()
        self.doubt: Callable[[], str] = lambda: ""
        self.objection = ""
        # SGLang's parsers of other forms come with torch.
        self._lacks = _LACKS if model.calls else _LACKS | {Need.TOOLS}
        self.lacks, self.bounded_to = self._lacks, 0

    async def GetCapabilities(
        self, request: worker_pb2.GetCapabilitiesRequest, timeout: float | None = None
    ) -> worker_pb2.GetCapabilitiesResponse:
        """What it says of itself, as a worker of the dense tier.

        Raises:
            grpc.aio.AioRpcError: as it fails; UNAVAILABLE while it is not ready.
        """
        self._well_until = float("-inf")
        if not await self._healthy(timeout):
            raise as_call_error(UnavailableError("it says that it is not ready"))
        messages = contract().messages
        server = readable(await self._stub.GetServerInfo(messages.GetServerInfoRequest(), timeout=timeout))
        info = readable(await self._stub.GetModelInfo(messages.GetModelInfoRequest(), timeout=timeout))
        known = self._facts
        # Some do not say when they began.
        same = known is not None and any(known.started) and known.started == started(server)
        digest = known.digest if known and same else ""
        facts = Facts(info, server, digest or await self._tokenizer())
        self._facts, self.objection = facts, facts.objection(self._model)
        self.lacks = self._lacks if facts.grammars else self._lacks | {Need.FORMAT, Need.DEMAND}
        if 0 < facts.kv_tokens < self._model.served.context_length:
            self.lacks, self.bounded_to = self.lacks | {Need.ROOM}, facts.kv_tokens
        else:
            self.bounded_to = 0
        return facts.capabilities(self._name)

    def WatchLoad(self, request: worker_pb2.WatchLoadRequest) -> LoadStream:
        """Its load, at once and at every interval; it ends where the server is lost, or has begun anew."""
        return LoadStream(self, self._channel, request.interval.ToNanoseconds() / 1e9)

    def Generate(
        self,
        request: worker_pb2.WorkerServiceGenerateRequest,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> StockCall:
        """One completion; cancelling it aborts it in the engine."""
        # SGLang aborts all whose id begins with the given one: the end tells `x.1` from `x.10`.
        rid = f"{request.request_id}."
        opening = partial(self._open, request, rid, timeout, metadata)
        attention = self._facts.attention if self._facts else "not known"
        unreported = f"dense by the server's word: stock SGLang, attention backend {attention}"
        return StockCall(opening, partial(self._abort, rid), self._name, unreported)

    async def load(self, timeout: float) -> worker_pb2.WatchLoadResponse | None:
        """Its load now; None where it has begun anew since it told what it is.

        Raises:
            grpc.aio.AioRpcError: as it fails.
        """
        messages = contract().messages
        healthy = await self._healthy(timeout)
        server = readable(await self._stub.GetServerInfo(messages.GetServerInfoRequest(), timeout=timeout))
        if self._facts is None or self._facts.started != started(server):
            return None
        asked = messages.GetLoadsRequest(include=["core"])
        ranks = readable(await self._stub.GetLoads(asked, timeout=timeout)).loads
        used = sum(max(rank.num_used_tokens, 0) for rank in ranks)
        return worker_pb2.WatchLoadResponse(
            requests=sum(max(rank.num_total_reqs, 0) for rank in ranks),
            # What its requests may still generate, it does not say.
            outstanding_tokens=used + sum(max(rank.num_waiting_uncached_tokens, 0) for rank in ranks),
            draining=server.is_paused or not healthy,
            kv_used_tokens=used,
        )

    async def _open(
        self,
        request: worker_pb2.WorkerServiceGenerateRequest,
        rid: str,
        timeout: float | None,
        metadata: Sequence[tuple[str, str]] | None,
    ) -> Opened:
        prompt = await prompt_of(request, self._model)
        check_prompt_logprobs(request.logprobs, len(prompt))
        new = check_room(request, len(prompt), self.bounded_to, self._model)
        # A long text takes a while: whoever listens there by now may attend less, or be of another model.
        if problem := self.doubt():
            raise UnavailableError(f"it was not asked: {problem}")
        asked = to_contract(request, rid, prompt, new, self._model)
        call = self._stub.Generate(asked, timeout=timeout, metadata=metadata)
        return call, StockAnswer(request, prompt, self._model)

    async def _healthy(self, timeout: float | None) -> bool:
        """Whether it says that it serves: by gRPC's health service, or, of one without, by a token of its engine.

        Each router asks with each report of the load: an engine makes no token for that while its last word is good.
        """
        if time.monotonic() < self._well_until:
            return True
        try:
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            found = readable(await self._health.Check(asked, timeout=timeout))
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NO_HEALTH:
                raise
        check = contract().messages.HealthCheckRequest()
        is_well = bool(readable(await self._stub.HealthCheck(check, timeout=timeout)).healthy)
        if is_well:
            self._well_until = time.monotonic() + _WELL_SECONDS
        return is_well

    async def _tokenizer(self) -> str:
        pieces, size = [], 0
        try:
            async for piece in self._stub.GetTokenizer(contract().common.GetTokenizerRequest(), timeout=60.0):
                pieces.append(readable(piece).data)
                size += len(pieces[-1])
                if size > _MOST_ARCHIVE:
                    return ""
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise
            # It has none to show.
            return ""
        return await asyncio.to_thread(tokenizer_digest, pieces)

    def _abort(self, rid: str) -> None:
        task = asyncio.get_running_loop().create_task(self._aborted(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _aborted(self, rid: str) -> None:
        asked = contract().messages.AbortRequest(request_id=rid, reason="its caller left")
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await self._stub.Abort(asked, timeout=_ABORT_SECONDS)


class LoadStream:
    """A server's load, asked for again and again, as a worker's stream of it.

    Args:
        server: that is asked.
        channel: to it; once the connection is lost, whoever answers next may be another.
        seconds: between two questions.
    """

    def __init__(self, server: StockServer, channel: grpc.aio.Channel, seconds: float) -> None:
        self._server, self._seconds = server, seconds
        ready = grpc.ChannelConnectivity.READY
        self._lost = asyncio.ensure_future(channel.wait_for_state_change(ready))
        self._begun = False

    def __aiter__(self) -> LoadStream:
        return self

    async def __anext__(self) -> worker_pb2.WatchLoadResponse:
        """The next report.

        Raises:
            grpc.aio.AioRpcError: as the server fails.
        """
        if self._begun:
            await asyncio.wait({self._lost}, timeout=self._seconds)
        self._begun = True
        found = None if self._lost.done() else await self._server.load(3 * self._seconds)
        if found is None:
            raise StopAsyncIteration
        return found

    def cancel(self) -> bool:
        """Ends it."""
        return self._lost.cancel()
