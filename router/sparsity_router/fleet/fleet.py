"""All workers of one of a router's models: who they are, and which one takes the next request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from sparsity.v1 import worker_pb2
from sparsity_policies.model import Tier
from sparsity_rpc.tls import ClientTls
from sparsity_serving.access.lease_keys import LeaseKeys
from sparsity_serving.background.jobs import JOBS
from sparsity_serving.engines import SGLANG

from sparsity_router.fleet.answers import DirectAnswers
from sparsity_router.fleet.breaker import RetryBudget
from sparsity_router.fleet.discovery import Discovery, discover
from sparsity_router.fleet.needs import NO_NEEDS, Need, Needs, least_tokens
from sparsity_router.fleet.patience import Patience
from sparsity_router.fleet.picking import Picker, Want
from sparsity_router.fleet.queue import TierQueue
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.tier_turns import TierTurns
from sparsity_router.fleet.workers import State, Worker

log = logging.getLogger("sparsity.router.fleet")
_LEAVING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Admission:
    """How requests are let in; what a router's options say unless they are given.

    Attributes:
        queue_seconds: how long a request may wait for room; 0 refuses at once.
        queue_limit: requests that may wait at a tier.
        dense_reserve: share of each worker that serves dense, in requests and in tokens of its KV cache, that only
            requests which policy holds dense may use.
        hedge_seconds: after which a second worker is asked too, while the first has not spoken; 0 never does.
        patience: how long a worker may say nothing.
    """

    queue_seconds: float = 10.0
    queue_limit: int = 256
    dense_reserve: float = 0.25
    hedge_seconds: float = 0.0
    patience: Patience = field(default_factory=Patience)


class Fleet:
    """The workers that discovery names, watched.

    Args:
        places: where workers are, see :mod:`sparsity_router.fleet.discovery`.
        tokenizer_digest: a worker of another tokenizer is not used.
        timeout: silence after which a worker counts as gone, seconds.
        lease_keys: what requests to workers are signed with.
        admission: how requests are let in.
        tls: what is trusted of workers, and shown to them.
        engine: a worker of another engine is not used.
        model: that servers of stock SGLang are to serve; without it there may be none.
        names: that workers may tell of their model; those of another are not used. Any where none is given.

    Attributes:
        direct: answers of streams that clients took to workers themselves.
    """

    def __init__(
        self,
        places: tuple[str, ...],
        tokenizer_digest: str,
        timeout: float,
        lease_keys: LeaseKeys | None = None,
        admission: Admission | None = None,
        tls: ClientTls | None = None,
        engine: str = SGLANG,
        model: StockModel | None = None,
        names: Collection[str] = (),
    ) -> None:
        self.lease_keys = lease_keys
        self.admission = admission or Admission()
        self.retries = RetryBudget()
        self.queues = {tier: TierQueue(self.admission.queue_limit, partial(self._sent, tier)) for tier in Tier}
        self._turns = TierTurns()
        self.workers: list[Worker] = []
        self.direct = DirectAnswers()
        self._about = (tokenizer_digest, timeout, self._room, tls, engine, self.admission.patience, model, names)
        self._sources: list[Discovery] = discover(places)
        self._found: dict[Discovery, Collection[str]] = {source: source.known for source in self._sources}
        self._watching: dict[Worker, asyncio.Task[None]] = {}
        self._picker = Picker()
        self._change()

    async def watch(self) -> None:
        """Follows discovery and watches every worker, for as long as it runs."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in self._sources:
                    group.create_task(JOBS.keep("discovery", partial(self._follow, source)))
                while True:
                    for worker in self.workers:
                        if worker not in self._watching:
                            self._watching[worker] = group.create_task(worker.watch())
                    await self._let_go()
                    await asyncio.sleep(_LEAVING_SECONDS)
        finally:
            self._watching.clear()

    async def _follow(self, source: Discovery) -> None:
        async for found in source.follow():
            self._found[source] = found
            self._change()

    def _change(self) -> None:
        """Takes up who was found, and keeps of those who were not found the ones with streams, unused."""
        wanted = dict.fromkeys(target for found in self._found.values() for target in found)
        known = {worker.target for worker in self.workers}
        fresh = [Worker(target, *self._about) for target in wanted if target not in known]
        for worker in fresh:
            worker.heard = self.direct.heard
            # Who is there from the beginning is no colder than its peers.
            worker.late = bool(known)
        self.workers += fresh
        for worker in self.workers:
            worker.leaving = worker.target not in wanted
        if gone := sorted(known - wanted.keys()):
            log.info("workers that are no longer found: %s", ", ".join(gone))

    async def _let_go(self) -> None:
        for worker in [worker for worker in self.workers if worker.leaving and not worker.in_flight]:
            self.workers.remove(worker)
            if task := self._watching.pop(worker, None):
                task.cancel()
            await worker.close()

    def _room(self) -> None:
        for tier in self._turns.order():
            self.queues[tier].wake()

    def _sent(self, tier: Tier, tokens: int) -> None:
        """Takes note of a request that had its turn; where there was room for one there may be room for the next."""
        if tokens:
            self._turns.had(tier, tokens)
        self._room()

    async def reconsider(self) -> None:
        """Lets all who wait be decided anew and try again: what policy holds dense by now may have room."""
        for tier in self._turns.order():
            await self.queues[tier].wake_all()

    def lacking(self, needs: frozenset[Need], request: worker_pb2.WorkerServiceGenerateRequest) -> Needs:
        """Those of a request's needs that some worker here lacks, room for its tokens among them."""
        tokens = least_tokens(request)
        found = needs.intersection(frozenset[Need]().union(*(worker.lacks for worker in self.workers)))
        if not (small := [worker for worker in self.workers if 0 < worker.bounded_to < tokens]):
            return Needs(found)
        # What may be held elsewhere is no fault of the request.
        nowhere = all(worker in small for worker in self.of(Tier.DENSE))
        return Needs(found | {Need.ROOM} if nowhere else found, max(worker.bounded_to for worker in small))

    def of(self, tier: Tier, dense_reasoning: bool = False, needs: Needs = NO_NEEDS) -> list[Worker]:
        """The workers that serve a tier, or those of them that decode reasoning densely at it, and lack no need."""
        able = (w for w in self.workers if tier in w.served and (not dense_reasoning or w.densifies(tier)))
        return [worker for worker in able if needs.met(worker.lacks, worker.bounded_to)]

    def pick(
        self,
        tier: Tier,
        tried: set[str],
        *,
        spilled: bool = False,
        dense_reasoning: bool = False,
        needs: Needs = NO_NEEDS,
        want: Callable[[], Want] | None = None,
        first: str = "",
    ) -> Worker | None:
        """The worker that takes a request at ``tier``, of those whose target was not tried; None when all are busy.

        What policy does not hold dense leaves the reserve of workers that serve dense alone: whatever is sparse, and a
        ``spilled`` request, which policy gave a sparser tier. The worker whose target is ``first`` goes before others.
        """
        reserve = 0.0 if tier is Tier.DENSE and not spilled else self.admission.dense_reserve

        def takes(worker: Worker) -> bool:
            if worker.state_at(tier) is not State.READY or worker.target in tried:
                return False
            return not reserve or not worker.serves_dense or worker.has_room(reserve)

        ready = [worker for worker in self.of(tier, dense_reasoning, needs) if takes(worker)]
        if known := next((worker for worker in ready if worker.target == first), None):
            return known
        # A prompt is copied and hashed only where there is a choice.
        return self._picker.pick(ready, tier, want() if want and len(ready) > 1 else None)

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*(worker.close() for worker in self.workers))
