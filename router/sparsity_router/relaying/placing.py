"""Where a decided request may go: the worker that takes it now, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from sparsity_policies.model import Decision, Reason, Tier
from sparsity_rpc.errors import OverloadedError, SparsityError, UnavailableError

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.picking import Want
from sparsity_router.fleet.workers import State, Worker


@dataclass(slots=True)
class Tried:
    """What has been tried for one request."""

    targets: set[str]
    count: int = 0
    overloaded: bool = False
    failed: bool = False
    deaths: int = 0
    complete: bool = False
    last_problem: str = ""

    def anew(self) -> Tried:
        """For the same request once it is decided anew: any worker may be asked again; what died of it stays dead."""
        return Tried(set(), self.count, failed=self.failed, deaths=self.deaths, last_problem=self.last_problem)


def need_of(decision: Decision) -> Hashable:
    """What a decided request needs of the workers of its tier's queue."""
    return decision.tier, decision.fallback, decision.dense_reasoning


def place(fleet: Fleet, decision: Decision, want: Callable[[], Want] | None = None) -> tuple[Worker, Decision]:
    """The worker that a request would be sent to now, and the decision as served by it.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
    """
    for tier in (decision.tier, *decision.fallback):
        if worker := pick(fleet, tier, decision, set(), want):
            return worker, served(decision, tier, fleet)
    raise nobody(fleet, decision, Tried(set()))


def pick(
    fleet: Fleet, tier: Tier, decision: Decision, tried: set[str], want: Callable[[], Want] | None
) -> Worker | None:
    """The worker that a decided request is sent to at ``tier``, of those that were not tried."""
    spilled, reasoning = tier is not decision.tier, decision.dense_reasoning
    return fleet.pick(tier, tried, spilled=spilled, dense_reasoning=reasoning, want=want)


def served(decision: Decision, tier: Tier, fleet: Fleet) -> Decision:
    """The decision as served at ``tier``."""
    if tier is decision.tier:
        return decision
    own = fleet.of(decision.tier)
    unproven = any(worker.state_at(decision.tier) is State.UNPROVEN for worker in own)
    reason = Reason.MISSING_TELEMETRY if unproven else Reason.TIER_UNAVAILABLE
    what = "prove what they attend" if unproven else "answer"
    if decision.dense_reasoning and own and not fleet.of(decision.tier, dense_reasoning=True):
        what = "decode reasoning densely"
    detail = f"policy gives {decision.tier.word}, whose workers could not {what}; {decision.explanation}"
    return replace(decision, tier=tier, reason=reason, explanation=detail)


def is_full(fleet: Fleet, decision: Decision, tried: Tried) -> bool:
    """Whether waiting may help: some worker that may serve the request has no room now."""
    able = [
        (worker, worker.state_at(tier))
        for tier in (decision.tier, *decision.fallback)
        for worker in fleet.of(tier, decision.dense_reasoning)
    ]
    # Ready and not asked: its room is kept for what policy holds dense.
    reserved = any(state is State.READY and worker.target not in tried.targets for worker, state in able)
    return tried.overloaded or reserved or any(state is State.FULL for _, state in able)


def nobody(fleet: Fleet, decision: Decision, tried: Tried) -> SparsityError:
    """Why no worker takes the request."""
    words = " or ".join(tier.word for tier in (decision.tier, *decision.fallback))
    last = f"; last: {tried.last_problem}" if tried.last_problem else ""
    if is_full(fleet, decision, tried):
        return OverloadedError(f"every {words} worker is full; try again{last}")
    return UnavailableError(f"no {words} worker can be reached{last}")
