"""Where a decided request may go: the worker that takes it now, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from sparsity_policies.model import Decision, Reason, Tier
from sparsity_rpc.errors import InvalidRequestError, OverloadedError, SparsityError, UnavailableError

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.fleet.needs import NO_NEEDS, Need, Needs
from sparsity_router.fleet.picking import Want
from sparsity_router.fleet.workers import State, Worker
from sparsity_router.relaying.answers import Answers


@dataclass(slots=True)
class Tried:
    """What has been tried for one answer, and what it needs of workers."""

    targets: set[str]
    count: int = 0
    overloaded: bool = False
    failed: bool = False
    complete: bool = False
    last_problem: str = ""
    needs: Needs = NO_NEEDS
    answers: Answers = field(default_factory=Answers)

    def anew(self) -> Tried:
        """For the same request once it is decided anew: any worker may be asked again; what died of it stays dead."""
        return Tried(set(), self.count, failed=self.failed, last_problem=self.last_problem, answers=self.answers)


def need_of(decision: Decision, needs: Needs = NO_NEEDS) -> Hashable:
    """What a decided request needs of the workers of its tier's queue."""
    return decision.tier, decision.fallback, decision.dense_reasoning, needs


def place(
    fleet: Fleet,
    decision: Decision,
    want: Callable[[], Want] | None = None,
    needs: Needs = NO_NEEDS,
) -> tuple[Worker, Decision]:
    """The worker that a request would be sent to now, and the decision as served by it.

    Raises:
        OverloadedError: when every worker that may serve the request is full.
        UnavailableError: when none can be reached.
        InvalidRequestError: when all of them lack what the request needs.
    """
    tried = Tried(set(), needs=needs)
    for tier in (decision.tier, *decision.fallback):
        if worker := pick(fleet, tier, decision, tried, want):
            return worker, served(decision, tier, fleet, tried)
    raise nobody(fleet, decision, tried)


def pick(fleet: Fleet, tier: Tier, decision: Decision, tried: Tried, want: Callable[[], Want] | None) -> Worker | None:
    """The worker that a decided request is sent to at ``tier``, of those that were not tried."""
    return fleet.pick(
        tier,
        tried.targets,
        spilled=tier is not decision.tier,
        dense_reasoning=decision.dense_reasoning,
        needs=tried.needs,
        want=want,
        first=tried.answers.speaker,
    )


def served(decision: Decision, tier: Tier, fleet: Fleet, tried: Tried) -> Decision:
    """The decision as served at ``tier``."""
    if tier is decision.tier:
        return decision
    own = fleet.of(decision.tier)
    reason, what = Reason.TIER_UNAVAILABLE, "could not answer"
    if any(worker.state_at(decision.tier) is State.UNPROVEN for worker in own):
        reason, what = Reason.MISSING_TELEMETRY, "could not prove what they attend"
    elif _have_no_room(fleet, decision.tier, decision, tried):
        reason, what = Reason.TIER_FULL, "are full"
    if decision.dense_reasoning and own and not fleet.of(decision.tier, dense_reasoning=True):
        what = "could not decode reasoning densely"
    detail = f"policy gives {decision.tier.word}, whose workers {what}; {decision.explanation}"
    return replace(decision, tier=tier, reason=reason, explanation=detail)


def is_full(fleet: Fleet, decision: Decision, tried: Tried) -> bool:
    """Whether waiting may help: some worker that may serve the request has no room now."""
    tiers = (decision.tier, *decision.fallback)
    return tried.overloaded or any(_have_no_room(fleet, tier, decision, tried) for tier in tiers)


def _have_no_room(fleet: Fleet, tier: Tier, decision: Decision, tried: Tried) -> bool:
    """Whether some worker would serve the request at ``tier`` if it had room."""
    able = fleet.of(tier, decision.dense_reasoning, tried.needs)
    # Ready and not asked: its room is kept for what policy holds dense.
    return any(
        state is State.FULL or (state is State.READY and worker.target not in tried.targets)
        for worker, state in ((worker, worker.state_at(tier)) for worker in able)
    )


def nobody(fleet: Fleet, decision: Decision, tried: Tried) -> SparsityError:
    """Why no worker takes the request."""
    words = " or ".join(tier.word for tier in (decision.tier, *decision.fallback))
    last = f"; last: {tried.last_problem}" if tried.last_problem else ""
    if is_full(fleet, decision, tried):
        return OverloadedError(f"every {words} worker is full; try again{last}")
    if lacking := _lacking(fleet, decision, tried.needs.fields):
        problem = f"{lacking.what} cannot be had of any {words} worker here: servers of stock SGLang have none"
        return InvalidRequestError.of(lacking.field, problem)
    return UnavailableError(f"no {words} worker can be reached{last}")


def _lacking(fleet: Fleet, decision: Decision, needs: frozenset[Need]) -> Need | None:
    """What keeps a request from every worker that it could go to otherwise; a lease is no caller's wish."""
    tiers, reasoning = (decision.tier, *decision.fallback), decision.dense_reasoning
    if any(not worker.tiers for worker in fleet.workers):
        # Who was not reached yet may have it.
        return None
    able = [worker for tier in tiers for worker in fleet.of(tier, reasoning)]
    common = needs.intersection(*(worker.lacks for worker in able)) if able else needs & frozenset()
    return next((need for need in Need if need in common and need is not Need.LEASE), None)
