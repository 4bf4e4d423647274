"""One worker as a router sees it: what it serves, how busy it is, and whether it can be used."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto

import grpc
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_policies.model import Tier
from sparsity_rpc.channels import MESSAGE_SIZE
from sparsity_rpc.tls import ClientTls, open_aio_channel
from sparsity_serving.engines import ECHO, SGLANG, engine_of

from sparsity_router.fleet.breaker import Breaker
from sparsity_router.fleet.patience import Patience

log = logging.getLogger("sparsity.router.workers")
_OPTIONS = [
    *MESSAGE_SIZE,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A worker whose machine is gone closes nothing: its streams end when a ping stays unanswered.
    ("grpc.keepalive_time_ms", 5000),
    # The ping has a timeout of its own, a minute by default, and the keepalive's alone does not end anything.
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
]
_RETRY_SECONDS = 0.5
_EXPECTED_SECONDS = 2.0
_REFUSED_SECONDS = 0.25
_WARM_UP_SECONDS = 30.0


class State(Enum):
    """Whether a worker can be used, and if not, why."""

    READY = auto()
    UNREACHABLE = auto()
    DRAINING = auto()
    FULL = auto()
    BROKEN = auto()
    UNPROVEN = auto()
    INCOMPATIBLE = auto()


class Worker:
    """One worker as this router sees it."""

    def __init__(
        self,
        target: str,
        tokenizer_digest: str,
        timeout: float,
        room: Callable[[], None],
        tls: ClientTls | None = None,
        engine: str = SGLANG,
        patience: Patience | None = None,
    ) -> None:
        self.patience = patience or Patience()
        self.target = target
        self._engine = engine
        self._digest = tokenizer_digest
        self._timeout = timeout
        self._room = room
        self._channel = open_aio_channel(target, tls, _OPTIONS)
        self.stub: worker_pb2_grpc.WorkerServiceAsyncStub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self.capabilities: worker_pb2.GetCapabilitiesResponse | None = None
        self.load = worker_pb2.WatchLoadResponse()
        self._heard = float("-inf")
        # Of this router's own, when the load was reported: the rest of it is other routers'.
        self._own_then = 0
        self._dispatched: dict[str, int] = {}
        self._distrusted = False
        self._mismatch = ""
        self._full_until = float("-inf")
        self.breaker = Breaker()
        self.problem = "not reached yet"
        self.leaving = False
        self.late = False
        self._met_at = float("-inf")

    @property
    def name(self) -> str:
        """The worker's id, or its address before it is known."""
        return self.capabilities.worker_id if self.capabilities else self.target

    @property
    def tier(self) -> Tier | None:
        """The tier it serves, once known."""
        known = self.capabilities is not None and int(self.capabilities.tier) in list(Tier)
        return Tier(self.capabilities.tier) if self.capabilities and known else None

    @property
    def must_prove(self) -> bool:
        """Whether it must prove and report what it attends: a sparse one must; an echo attends nothing."""
        return self.tier is not Tier.DENSE and self._engine != ECHO

    @property
    def outstanding_tokens(self) -> int:
        """Tokens it has to work on: what it reports, or what this router sent it when that is more."""
        return max(self.load.outstanding_tokens, sum(self._dispatched.values()))

    @property
    def warmth(self) -> float:
        """From 0 for a worker that has just joined others, or come back, to 1: every router finds it idle and cold."""
        return min((time.monotonic() - self._met_at) / _WARM_UP_SECONDS, 1.0)

    @property
    def kv_use(self) -> float:
        """Share of the KV cache that live requests hold, in [0, 1]."""
        most = self.capabilities.kv_capacity_tokens if self.capabilities else 0
        return min(self.load.kv_used_tokens / most, 1.0) if most else 0.0

    @property
    def densifies(self) -> bool:
        """Whether it decodes reasoning spans densely when asked."""
        return self.tier is Tier.DENSE or (self.capabilities is not None and self.capabilities.dense_reasoning)

    @property
    def in_flight(self) -> int:
        """Requests that this router sent it and that have not ended."""
        return len(self._dispatched)

    @property
    def state(self) -> State:
        """Whether it can take a request now."""
        if self.capabilities is None or time.monotonic() - self._heard > self._timeout:
            return State.UNREACHABLE
        if self.load.draining or self.leaving:
            return State.DRAINING
        if self._mismatch:
            return State.INCOMPATIBLE
        if self._distrusted or not self._is_proven:
            return State.UNPROVEN
        if not self.breaker.allows():
            return State.BROKEN
        return State.READY if self.has_room(1.0) else State.FULL

    @property
    def _is_proven(self) -> bool:
        """Whether its start-up proof shows what its tier promises: pruning on a sparse one, none on the dense one."""
        calls = self.capabilities.proof.sparse_kernel_calls if self.capabilities else 0
        if self.tier is Tier.DENSE:
            return calls == 0
        return calls > 0 or not self.must_prove

    def has_room(self, share: float) -> bool:
        """Whether less than ``share`` of the requests that it takes are there."""
        most = self.capabilities.max_requests if self.capabilities else 0
        if time.monotonic() < self._full_until:
            return False
        return max(self.load.requests - self._own_then, 0) + len(self._dispatched) < most * share

    @contextmanager
    def dispatched(self, rid: str, tokens: int) -> Iterator[None]:
        """Counts a request that this router sent."""
        self._dispatched[rid] = tokens
        try:
            with self.breaker.attempt():
                yield
        finally:
            del self._dispatched[rid]
            self._room()

    def expect(self, rid: str, tokens: int) -> None:
        """Counts a request that a client brings itself, until the worker's own report can be expected to have it."""
        self._dispatched[rid] = tokens
        asyncio.get_running_loop().call_later(_EXPECTED_SECONDS, self._dispatched.pop, rid, None)

    def refused(self) -> None:
        """Leaves the worker alone for a moment, because it said that it is full, whatever its load report says."""
        self._full_until = time.monotonic() + _REFUSED_SECONDS
        asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self._room)

    def failed(self, problem: str) -> None:
        """Takes the worker out until it is heard again."""
        self._heard = float("-inf")
        if problem != self.problem:
            log.warning("worker %s is not used: %s", self.name, problem)
        self.problem = problem

    def distrust(self, problem: str) -> None:
        """Takes a worker out until it proves itself anew, because of what it said that it attended, or did not say."""
        self._distrusted = True
        self.problem = problem
        log.error("worker %s is not used: %s", self.name, problem)

    async def watch(self) -> None:
        """Keeps capabilities and load current, for as long as it runs."""
        while True:
            try:
                found = await self.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=self._timeout)
                if found != self.capabilities:
                    self._greet(found)
                self.breaker.reset()
                request = worker_pb2.WatchLoadRequest()
                request.interval.FromMilliseconds(int(self._timeout * 1000 / 3))
                async for load in self.stub.WatchLoad(request):
                    self.load, self._heard, self._own_then = load, time.monotonic(), len(self._dispatched)
                    self._room()
                self.failed("ended its load stream")
            except grpc.aio.AioRpcError as error:
                self.failed(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(_RETRY_SECONDS)

    def _greet(self, found: worker_pb2.GetCapabilitiesResponse) -> None:
        if self.late or self.capabilities is not None:
            self._met_at = time.monotonic()
        self.capabilities = found
        self._distrusted = False
        tier = inference_pb2.Tier.Name(found.tier)
        log.info("worker %s at %s serves %s with %s (%s)", self.name, self.target, tier, found.profile, found.backend)
        self.problem = self._mismatch = _mismatch(found, self._digest, self._engine)
        if not self.problem and not self._is_proven:
            what = "sparse kernel calls" if self.tier is Tier.DENSE else "no sparse kernel call"
            self.problem = f"its start-up proof shows {what}"
        if self.problem:
            log.error("worker %s is not used: %s", self.name, self.problem)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _mismatch(found: worker_pb2.GetCapabilitiesResponse, tokenizer_digest: str, engine: str) -> str:
    """Why this router cannot use a worker at all; empty where it can."""
    if int(found.tier) not in list(Tier):
        return "it names no tier"
    if found.tokenizer_digest != tokenizer_digest:
        return "its tokenizer differs from the router's"
    if (own := engine_of(found)) != engine:
        return f"its engine is {own}, and this router takes {engine} (--engine)"
    return ""
