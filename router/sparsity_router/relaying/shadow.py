"""Repeats a share of the sparse answers on a dense worker, and tells how far the two agree.

It uses only room that nobody waits for, and holds up no caller: answers are compared after they were given.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc
from opentelemetry import metrics
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision, Tier
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_rpc.errors import InvalidRequestError, NotFoundError, StoreError
from sparsity_serving import telemetry
from sparsity_serving.metrics.metering import SHARES, Total, histogram, meter_of
from sparsity_serving.token_bucket import TokenBucket

from sparsity_router.fleet.answers import judge
from sparsity_router.fleet.fleet import Fleet
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.relaying.dispatch import dispatch
from sparsity_router.relaying.relay import Relayed
from sparsity_router.relaying.worker_request import WorkerRequest, read_needs

METRIC = "shadow_agreement"
_WAITING = 32
_SECONDS = 120.0
log = logging.getLogger("sparsity.router.shadow")


@dataclass(slots=True)
class Sample:
    """One sparse answer to compare.

    Attributes:
        decision_id: of its decision.
        domain: the policy that decided.
        fleet: whose dense workers repeat it.
        request: as the worker got it.
        tokens: what it generated, filled while it is relayed.
        tier: that served it.
    """

    decision_id: str
    domain: str
    fleet: Fleet
    request: worker_pb2.WorkerServiceGenerateRequest
    tokens: list[int] = field(default_factory=list)
    tier: Tier = Tier.DENSE


def agreement(ours: list[int], dense: list[int]) -> float:
    """How much of two answers is the same from their beginning on: common tokens over those of the longer one."""
    longest = max(len(ours), len(dense))
    common = next(
        (at for at, (a, b) in enumerate(zip(ours, dense, strict=False)) if a != b), min(len(ours), len(dense))
    )
    return common / longest if longest else 1.0


class Shadow:
    """Comparisons of one router.

    Args:
        follower: of policies, which say what share of a domain's sparse answers is repeated.
        decisions: where agreement is reported as an outcome; None without a store.
        meter: where it is measured.
    """

    def __init__(
        self,
        follower: PolicyFollower,
        decisions: DecisionLog | None = None,
        meter: metrics.Meter | None = None,
    ) -> None:
        self._follower = follower
        self._decisions = decisions
        self._buckets: dict[str, TokenBucket] = {}
        self._waiting: asyncio.Queue[Sample] = asyncio.Queue(_WAITING)
        meter = meter or meter_of("sparsity.router")
        what = "Share of a sparse answer that dense attention gave too, from its beginning to the first other token."
        self._agreement = histogram(meter, "sparsity.router.shadow.agreement", "1", what, SHARES)
        self._samples = Total(
            meter, "sparsity.router.shadow.samples", "{request}", "Sparse answers, by what became of them."
        )

    async def sampled(
        self, fleet: Fleet, request: WorkerRequest, answer: AsyncGenerator[Relayed]
    ) -> AsyncGenerator[Relayed]:
        """Passes an answer of a fleet's on; a whole one that is a sample is queued before its last message."""
        sample = self._sample(fleet, request)
        async with aclosing(answer) as messages:
            async for relayed in messages:
                if sample is not None:
                    sample.tokens += relayed.response.token_ids
                    if relayed.response.HasField("completion"):
                        self._finish(sample, relayed.served, relayed.response.completion)
                yield relayed

    def _sample(self, fleet: Fleet, request: WorkerRequest) -> Sample | None:
        """A sample to fill, where this answer is one: sparse, greedy, and of the share that its policy asks for."""
        decision, message = request.decided.review.decision, request.message
        policy = self._follower.snapshot.policy(decision.policy)
        wanted = policy.shadow if policy else None
        if wanted is None or decision.tier is Tier.DENSE or message.sampling.temperature > 0:
            return None
        if random.random() * 100 >= wanted.percent:
            return None
        return Sample(message.request_id, decision.policy, fleet, message)

    def _finish(self, sample: Sample, served: Decision, completion: inference_pb2.Completion) -> None:
        """Queues a whole answer; where there is no room or budget it is passed over."""
        sample.tier = served.tier
        policy = self._follower.snapshot.policy(sample.domain)
        if served.tier is Tier.DENSE or policy is None or policy.shadow is None or not sample.tokens:
            return
        limit, cost = policy.shadow.tokens_per_minute, completion.usage.prompt_tokens + len(sample.tokens)
        if limit and not self._bucket(sample.domain, limit).spend(cost):
            self._count(sample, "over_budget")
            return
        try:
            self._waiting.put_nowait(sample)
        except asyncio.QueueFull:
            self._count(sample, "busy")

    def _bucket(self, domain: str, a_minute: int) -> TokenBucket:
        """What a domain's samples may cost, by what its policy says now."""
        rate = a_minute / 60.0, float(a_minute)
        bucket = self._buckets.setdefault(domain, TokenBucket(*rate))
        bucket.resize(*rate)
        return bucket

    async def run(self) -> None:
        """Compares one after the other, for as long as it runs."""
        while True:
            sample = await self._waiting.get()
            self._count(sample, await self._compare(sample))

    async def _compare(self, sample: Sample) -> str:
        """What became of a sample, in a word."""
        # As a request that spills over: what policy holds dense comes first, and whoever waits for any room.
        fleet = sample.fleet
        needs = fleet.lacking(await read_needs(sample.request), sample.request)
        worker = fleet.pick(Tier.DENSE, set(), spilled=True, needs=needs)
        if worker is None or any(fleet.queues.values()):
            return "busy"
        request = worker_pb2.WorkerServiceGenerateRequest()
        request.CopyFrom(sample.request)
        request.request_id, request.priority = f"shadow-{sample.decision_id}", 0
        request.sampling.max_new_tokens = len(sample.tokens)
        request.ClearField("logprobs")
        found: list[int] = []
        lease = (fleet.lease_keys, sample.decision_id)
        try:
            async with aclosing(dispatch(worker, request, Tier.DENSE, 1, _SECONDS, lease)) as answers:
                async for answer in answers:
                    found += answer.token_ids
                    if answer.HasField("completion") and not judge(worker, Tier.DENSE, answer.completion):
                        return "failed"
        except grpc.aio.AioRpcError as error:
            log.info("shadow of %s: %s %s", sample.decision_id, error.code().name, error.details())
            return "failed"
        share = agreement(sample.tokens, found)
        self._agreement.record(share, {telemetry.DOMAIN: sample.domain, telemetry.TIER: sample.tier.word})
        await self._report(sample, share)
        return "compared"

    async def _report(self, sample: Sample, share: float) -> None:
        if self._decisions is None:
            return
        try:
            await self._decisions.report(sample.decision_id, METRIC, share)
        except (NotFoundError, InvalidRequestError, StoreError) as error:
            # Not every decision is logged, nor has room for one more metric; the router's own has it anyway.
            log.debug("shadow of %s: %s", sample.decision_id, error)

    def _count(self, sample: Sample, outcome: str) -> None:
        self._samples.add(1, {telemetry.DOMAIN: sample.domain, "sparsity.shadow.outcome": outcome})
