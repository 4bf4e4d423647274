"""One worker as a router sees it: what it serves, how busy it is, and whether it can be used."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

import grpc
from sparsity.v1 import worker_pb2
from sparsity_policies.model import Tier
from sparsity_rpc.reading import readable
from sparsity_rpc.tls import ClientTls
from sparsity_serving.engines import ECHO, SGLANG

from sparsity_router.fleet.breaker import Breaker, least_through
from sparsity_router.fleet.capabilities import by_tier, mismatch
from sparsity_router.fleet.contracts import Stub, open_worker
from sparsity_router.fleet.needs import Need
from sparsity_router.fleet.patience import Patience
from sparsity_router.fleet.proof import start_fault
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.stock.server import StockServer

log = logging.getLogger("sparsity.router.workers")
_RETRY_SECONDS, _EXPECTED_SECONDS, _REFUSED_SECONDS, _WARM_UP_SECONDS = 0.5, 2.0, 0.25, 30.0


class State(Enum):
    """Whether a worker can be used, and if not, why."""

    READY = auto()
    UNREACHABLE = auto()
    DRAINING = auto()
    FULL = auto()
    BROKEN = auto()
    UNPROVEN = auto()
    INCOMPATIBLE = auto()


# Of a worker that could be used at some tier: at one that is in doubt, or fails, that is what counts.
_OF_ALL_TIERS: Final = frozenset({State.READY, State.FULL, State.BROKEN})


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
        model: StockModel | None = None,
        names: Collection[str] = (),
    ) -> None:
        self.patience = patience or Patience()
        self.target, self._room = target, room
        self._digest, self._engine, self._names, self._timeout = tokenizer_digest, engine, names, timeout
        self.stub: Stub
        self._channel, self.stub = open_worker(target, tls, model)
        self._stock = self.stub if isinstance(self.stub, StockServer) else None
        if self._stock:
            self._stock.doubt = lambda: self.problem
        self._capabilities: worker_pb2.GetCapabilitiesResponse | None = None
        self._served: dict[Tier, worker_pb2.TierCapabilities] = {}
        # Why a tier is not used, though the worker serves it.
        self._doubts: dict[Tier, str] = {}
        self.load = worker_pb2.WatchLoadResponse()
        self._heard = self._full_until = self._met_at = float("-inf")
        # Of this router's own, when the load was reported: the rest of it is other routers'.
        self._own_then = 0
        self._dispatched: dict[str, tuple[Tier, int]] = {}
        self._mismatch = ""
        # Why it was not heard, or why it failed since.
        self._lost = "not reached yet"
        self.breakers = {tier: Breaker() for tier in Tier}
        self.leaving = self.late = False
        self.heard: Callable[[Worker, Iterable[worker_pb2.EndedLease]], None] = lambda worker, ended: None

    @property
    def name(self) -> str:
        """The worker's id, or its address before it is known."""
        return self.capabilities.worker_id if self.capabilities else self.target

    @property
    def capabilities(self) -> worker_pb2.GetCapabilitiesResponse | None:
        """What it says of itself; None until it was reached."""
        return self._capabilities

    @capabilities.setter
    def capabilities(self, found: worker_pb2.GetCapabilitiesResponse) -> None:
        self._capabilities, self._served = found, by_tier(found)
        theirs = self._stock.objection if self._stock else ""
        self._mismatch = mismatch(found, self._digest, self._engine, self._names) or theirs
        attends = self._engine != ECHO
        faults = {tier: start_fault(own.proof, tier, attends=attends) for tier, own in self._served.items()}
        self._doubts = {tier: fault for tier, fault in faults.items() if fault}

    @property
    def served(self) -> dict[Tier, worker_pb2.TierCapabilities]:
        """What it says of each tier that it serves, the densest first; empty until it was reached."""
        return self._served

    @property
    def tiers(self) -> frozenset[Tier]:
        """The tiers that it serves, once known."""
        return frozenset(self._served)

    @property
    def trusted(self) -> frozenset[Tier]:
        """Those of them at which it shows the attention that it gives; none where it is another than it is to be."""
        return frozenset(() if self._mismatch else self._served.keys() - self._doubts.keys())

    @property
    def serves_dense(self) -> bool:
        """Whether dense requests may come to it, for which it keeps room then."""
        return Tier.DENSE in self._served and Tier.DENSE not in self._doubts

    @property
    def problem(self) -> str:
        """What is wrong with it; empty when nothing is."""
        doubts = [fault if len(self._served) == 1 else f"{tier.word}: {fault}" for tier, fault in self._doubts.items()]
        return self._lost or self._mismatch or "; ".join(doubts)

    @property
    def lacks(self) -> frozenset[Need]:
        """What some requests need, and it does not have."""
        return self._stock.lacks if self._stock else frozenset()

    @property
    def bounded_to(self) -> int:
        """Tokens that one request may have at most for lack of KV cache; 0 where it bounds none, or says nothing."""
        return self._stock.bounded_to if self._stock else 0

    def must_report(self, tier: Tier) -> bool:
        """Whether its answers at ``tier`` must say what was attended: sparse ones must; an echo attends nothing."""
        return tier is not Tier.DENSE and self._engine != ECHO

    def densifies(self, tier: Tier) -> bool:
        """Whether it decodes reasoning spans densely at ``tier`` when asked."""
        return tier is Tier.DENSE or (tier in self._served and self._served[tier].dense_reasoning)

    def requests_at(self, tier: Tier) -> int:
        """Requests that it holds at ``tier``, by its own report."""
        if len(self._served) == 1 and not self.load.tiers:
            return self.load.requests if tier in self._served else 0
        return sum(own.requests for own in self.load.tiers if own.tier == tier.value)

    @property
    def outstanding_tokens(self) -> int:
        """Tokens it has to work on: what it reports, or what this router sent it when that is more."""
        return max(self.load.outstanding_tokens, sum(tokens for _, tokens in self._dispatched.values()))

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
    def in_flight(self) -> int:
        """Requests that this router sent it and that have not ended."""
        return len(self._dispatched)

    def in_flight_at(self, tier: Tier) -> int:
        """Those of them that it was asked for at ``tier``."""
        # Metrics are taken in a thread of their own.
        return sum(at is tier for at, _ in list(self._dispatched.values()))

    @property
    def state(self) -> State:
        """Whether it can take a request now, of any tier."""
        if self._capabilities is None or time.monotonic() - self._heard > self._timeout:
            return State.UNREACHABLE
        if self.load.draining or self.leaving:
            return State.DRAINING
        if self._mismatch:
            return State.INCOMPATIBLE
        if len(self._doubts) == len(self._served):
            return State.UNPROVEN
        if not any(self.breakers[tier].allows() for tier in self.trusted):
            return State.BROKEN
        return State.READY if self.has_room() else State.FULL

    def state_at(self, tier: Tier) -> State:
        """Whether it can take a request of a tier that it serves."""
        state = self.state
        if state not in _OF_ALL_TIERS:
            return state
        if tier in self._doubts:
            return State.UNPROVEN
        return state if self.breakers[tier].allows() else State.BROKEN

    @property
    def breaker_word(self) -> str:
        """Of the breakers of its tiers, the word of the one that lets least through."""
        return least_through(self.breakers[tier] for tier in tuple(self._served))

    def has_room(self, reserve: float = 0.0) -> bool:
        """Whether it can take a request and leave ``reserve`` alone, a share of its places and of its KV cache."""
        own, share = self._capabilities, 1.0 - reserve
        if own is None or time.monotonic() < self._full_until:
            return False
        held = max(self.load.requests - self._own_then, 0) + len(self._dispatched)
        # By tokens that requests may still come to: the cache that they hold by now says little of a burst.
        fits = not reserve or not own.kv_capacity_tokens or self.outstanding_tokens < own.kv_capacity_tokens * share
        return held < own.max_requests * share and fits

    @contextmanager
    def dispatched(self, rid: str, tier: Tier, tokens: int) -> Iterator[None]:
        """Counts a request that this router sent."""
        self._dispatched[rid] = tier, tokens
        try:
            with self.breakers[tier].attempt():
                yield
        finally:
            del self._dispatched[rid]
            self._room()

    def expect(self, rid: str, tier: Tier, tokens: int) -> None:
        """Counts a request that a client brings itself, until the worker's own report can be expected to have it."""
        self._dispatched[rid] = tier, tokens
        asyncio.get_running_loop().call_later(_EXPECTED_SECONDS, self._came, rid)

    def _came(self, rid: str) -> None:
        self._dispatched.pop(rid, None)
        self._room()

    def refused(self) -> None:
        """Leaves the worker alone for a moment, because it said that it is full, whatever its load report says."""
        self._full_until = time.monotonic() + _REFUSED_SECONDS
        asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self._room)

    def failed(self, problem: str) -> None:
        """Takes the worker out until it is heard again."""
        self._heard = float("-inf")
        if problem != self._lost:
            log.warning("worker %s is not used: %s", self.name, problem)
        self._lost = problem

    def distrust(self, problem: str, tiers: Collection[Tier]) -> None:
        """Takes it out at ``tiers`` until it proves itself anew, because of what it said of its answers, or did not."""
        doubtful = [tier for tier in self._served if tier in tiers]
        self._doubts |= dict.fromkeys(doubtful, problem)
        log.error("worker %s is not used for %s: %s", self.name, ", ".join(tier.word for tier in doubtful), problem)

    async def watch(self) -> None:
        """Keeps capabilities and load current, for as long as it runs."""
        while True:
            try:
                asked = self.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=self._timeout)
                found = readable(await asked)
                if found != self.capabilities or self._stock:
                    self._greet(found)
                for breaker in self.breakers.values():
                    breaker.reset()
                request = worker_pb2.WatchLoadRequest()
                request.interval.FromMilliseconds(int(self._timeout * 1000 / 3))
                reports = self.stub.WatchLoad(request)
                try:
                    async for load in reports:
                        self.load = readable(load)
                        self._heard, self._own_then, self._lost = time.monotonic(), len(self._dispatched), ""
                        self.heard(self, self.load.ended_leases)
                        self._room()
                finally:
                    reports.cancel()
                self.failed("ended its load stream")
            except grpc.aio.AioRpcError as error:
                self.failed(f"{error.code().name}: {error.details()}")
            except Exception as error:  # an odd answer is the failure of its worker, not of the router that watches it
                self.failed(f"its answer cannot be used: {type(error).__name__}: {error}")
            await asyncio.sleep(_RETRY_SECONDS)

    def _greet(self, found: worker_pb2.GetCapabilitiesResponse) -> None:
        if self.late or self._capabilities is not None:
            self._met_at = time.monotonic()
        self.capabilities, self._lost = found, ""
        profiles = ", ".join(f"{tier.word} with {own.profile}" for tier, own in self._served.items())
        log.info("worker %s at %s serves %s (%s)", self.name, self.target, profiles or "no tier", found.backend)
        if self.problem:
            partly = " everywhere" if self.trusted else ""
            log.error("worker %s is not used%s: %s", self.name, partly, self.problem)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
