"""Policy edits, rollouts, kill switches, worker faults in any order: nothing gets less attention than policy gives it.

The oracles say independently of the decision function what must be dense, and how sparse a request may be at most: one
for the decision and the place that it leads to, one for every attempt of whole routers over fake workers, where all
changes while requests are under way. Workers serve one tier or several, and mixed fleets have both.
`--mutation unreviewed` puts back that attempts go by the first decision, and others of `MUTATIONS` other faults: then
this fails.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sparsity.v1 import worker_pb2
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.rollout import Action, bucket, move
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Guards, Override, Policy, Rollout, Scope, Signals, Tier
from sparsity_router.decisions.review import Review
from sparsity_router.decisions.sessions import Sessions, SessionTier
from sparsity_router.fleet import queue, workers
from sparsity_router.fleet.breaker import Breaker
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.workers import State, Worker
from sparsity_router.prompts.signals import Resolved
from sparsity_router.relaying import relay
from sparsity_router.relaying.placing import place
from sparsity_router.relaying.worker_request import WorkerRequest
from sparsity_router.services import inference
from sparsity_rpc.errors import InvalidRequestError, OverloadedError, UnavailableError
from sparsity_serving.engines import SGLANG
from support.routers.whole_path import (
    DOMAINS,
    MIXED,
    POOLS,
    RULES,
    SHARED,
    Asked,
    Change,
    Draft,
    HeldReview,
    Layout,
    Served,
    Step,
    World,
    age,
    edit,
    kill,
    play,
    restart,
    roll_out,
    unkill,
)
from support.stores.snapshots import stored
from support.telling import tell

TIERS = st.sampled_from(Tier)
LAYOUTS = st.sampled_from((POOLS, SHARED, MIXED))
WORKERS = st.integers(0, 5)
SETS = st.frozensets(TIERS, min_size=1)
SERVED = st.builds(Served, SETS, st.just(frozenset()) | SETS, st.sampled_from((True, True, False)))
SIGNALS = st.builds(
    Signals,
    min_tokens=st.just(0),
    max_tokens=st.integers(1, 400),
    domain=st.sampled_from((*DOMAINS * 3, "unknown", "")),
    flags=st.sampled_from((frozenset(), frozenset(), frozenset({"safety"}))),
    tenant=st.sampled_from(("", "acme")),
    session=st.sampled_from(("", "s1", "s2", "s3", "s4")),
    max_tier=st.sampled_from((None, None, None, *Tier)),
    scanned_bytes=st.just(9),
    prompt_bytes=st.sampled_from((9, 9, 9, 10)),
    classifier_error=st.sampled_from(("", "", "", "timed out")),
    policy_age=st.sampled_from((0.0, 0.0, 0.0, 1e6)),
    received_at=st.just(100.0),
    detected=st.booleans(),
    confidence=st.sampled_from((1.0, 1.0, 0.5, 0.1)),
    declared=st.sampled_from(("", "", *DOMAINS)),
    also=st.sampled_from(((), (), DOMAINS[:1], DOMAINS, ("unknown",))),
    session_tier=st.sampled_from((None, None, *Tier)),
    dense_reasoning=st.booleans(),
).flatmap(
    # Most lengths are exact, some are an interval.
    lambda made: st.sampled_from((made.max_tokens, made.max_tokens, made.max_tokens // 2)).map(
        lambda least: replace(made, min_tokens=least)
    )
)


def policy(domain: str, low: Tier, high: Tier) -> Policy:
    bands = [{"from_tokens": 0, "tier": low.word}, {"from_tokens": 200, "tier": high.word}]
    return parse_policy({"domain": domain, "risk": "low", "bands": bands})


class Stand(Worker):
    """A worker without a channel, whose state and room a test sets."""

    state = State.READY  # type: ignore[assignment]

    def __init__(self, name: str, served: Served) -> None:
        self.target, self._digest, self._engine, self._names = name, "digest", SGLANG, ()
        self.load, self._dispatched, self._met_at = worker_pb2.WatchLoadResponse(), {}, float("-inf")
        self._stock, self.spare, self.breakers = None, True, {tier: Breaker() for tier in Tier}
        self.restart(served)

    def restart(self, served: Served) -> None:
        """Comes back with other tiers."""
        self.what, self.capabilities = served, served.capabilities(self.target)

    def has_room(self, reserve: float = 0.0) -> bool:
        """Room beside the reserve only where the test lets it."""
        return self.spare or not reserve


class Machine(RuleBasedStateMachine):
    @initialize(layout=LAYOUTS)
    def begin(self, layout: Layout) -> None:
        self.policies = {domain: policy(domain, Tier.DENSE, Tier.AGGRESSIVE) for domain in DOMAINS}
        self.overrides: dict[str, Override] = {}
        self.fleet = Fleet((), "", 1.0, admission=Admission(dense_reserve=0.5))
        self.workers = [Stand(name, served) for name, served in layout.items()]
        self.fleet.workers = list(self.workers)
        self.checked = 0

    @rule(domain=st.sampled_from(DOMAINS), low=TIERS, high=TIERS, cap=st.none() | TIERS)
    def edit(self, domain: str, low: Tier, high: Tier, cap: Tier | None) -> None:
        self.policies[domain] = replace(policy(domain, low, high), guards=Guards(max_tier=cap))

    @rule(domain=st.sampled_from(DOMAINS), held=st.sampled_from((Tier.DENSE, Tier.MODERATE)), first=st.integers(1, 99))
    def roll_out(self, domain: str, held: Tier, first: int) -> None:
        self.policies[domain] = move(self.policies[domain], Action.START, Rollout((first, 100), held_back=held))

    @rule(domain=st.sampled_from(DOMAINS), action=st.sampled_from([a for a in Action if a is not Action.START]))
    def move_on(self, domain: str, action: Action) -> None:
        try:
            self.policies[domain] = move(self.policies[domain], action)
        except InvalidRequestError:
            return

    @rule(
        name=st.sampled_from("abc"),
        scope=st.sampled_from(Scope),
        cap=st.sampled_from((Tier.DENSE, Tier.MODERATE)),
        ends=st.sampled_from((None, 50.0, 200.0)),
        killed=st.sampled_from((Tier.MODERATE, Tier.AGGRESSIVE)),
    )
    def kill(self, name: str, scope: Scope, cap: Tier, ends: float | None, killed: Tier) -> None:
        targets = {Scope.GLOBAL: "", Scope.DOMAIN: "chat", Scope.TENANT: "acme", Scope.TIER: killed.word}
        cap = min(cap, Tier(killed - 1)) if scope is Scope.TIER else cap
        self.overrides[name] = Override(name, scope, targets[scope], cap, ends)

    @rule(name=st.sampled_from("abc"))
    def unkill(self, name: str) -> None:
        self.overrides.pop(name, None)

    @rule(states=st.lists(st.sampled_from((State.READY, State.READY, *State)), min_size=6, max_size=6))
    def fault(self, states: list[State]) -> None:
        for worker, state in zip(self.workers, states, strict=False):
            worker.state = state  # type: ignore[misc]

    @rule(number=WORKERS, served=SERVED)
    def restart(self, number: int, served: Served) -> None:
        self.workers[number % len(self.workers)].restart(served)

    @rule(number=WORKERS, spare=st.booleans())
    def fill(self, number: int, spare: bool) -> None:
        self.workers[number % len(self.workers)].spare = spare

    @rule(asked=st.lists(SIGNALS, min_size=1, max_size=8))
    def ask(self, asked: list[Signals]) -> None:
        for signals in asked:
            self.ask_one(signals)

    def ask_one(self, signals: Signals) -> None:
        snapshot = Snapshot.build(
            1, [stored(item) for item in self.policies.values()], self.overrides.values(), ttl=300.0
        )
        decision = decide(signals, snapshot)
        limit = self.limit(signals)
        assert decision.tier <= limit, (decision, limit)
        try:
            worker, served = place(self.fleet, decision)
        except (OverloadedError, UnavailableError):
            # Refused, never answered with less attention: a dense request has no other worker.
            usable = [w for w in self.workers if Tier.DENSE in w.what.usable and w.state is State.READY]
            assert decision.tier is not Tier.DENSE or not usable
            return
        assert isinstance(worker, Stand)
        assert served.tier in worker.what.usable
        assert served.tier <= decision.tier
        assert served.tier <= limit
        assert worker.what.densifies or served.tier is Tier.DENSE or not signals.dense_reasoning
        killed = {o.target for o in self.overrides.values() if o.scope is Scope.TIER and self.acts(o)}
        assert served.tier.word not in killed
        # What is kept for dense requests is left alone by all others, and where nobody may be dense nothing is kept.
        assert worker.spare or decision.tier is Tier.DENSE or Tier.DENSE not in worker.what.usable
        self.checked += 1

    def acts(self, override: Override) -> bool:
        return override.expire_time is None or override.expire_time > 100.0

    def limit(self, signals: Signals) -> Tier:
        """How sparse the request may be at most, in words of policy."""
        doubts = (
            signals.flags,
            signals.domain not in DOMAINS,
            signals.scanned_bytes < signals.prompt_bytes,
            signals.classifier_error,
            signals.policy_age > 300,
            signals.detected and signals.confidence < 0.4,
        )
        if any(doubts):
            return Tier.DENSE
        limits = [signals.max_tier or Tier.AGGRESSIVE, signals.session_tier or Tier.AGGRESSIVE]
        for domain in {signals.domain, signals.declared, *signals.also}.intersection(DOMAINS):
            limits += self.limits_of(domain, signals)
        for override in self.overrides.values():
            targets = {"", signals.tenant}
            if override.scope is Scope.DOMAIN:
                targets = {"", signals.domain, signals.declared, *signals.also}
            if override.scope is not Scope.TIER and self.acts(override) and override.target in targets:
                limits.append(override.max_tier)
        return min(limits)

    def limits_of(self, domain: str, signals: Signals) -> list[Tier]:
        """What one domain's policy allows."""
        found = self.policies[domain]
        limits = [max(band.tier for band in found.bands)]
        if signals.min_tokens < 200:
            limits.append(found.bands[0].tier)
        if found.guards.max_tier:
            limits.append(found.guards.max_tier)
        rollout = found.rollout
        if rollout and rollout.percent < 100:
            inside = signals.session and bucket(domain, signals.session) < rollout.percent
            if not inside:
                limits.append(rollout.held_back)
        return limits


Machine.TestCase.settings = settings(max_examples=250, stateful_step_count=40)
TestNeverSparser = Machine.TestCase

# Mostly sparse, so that there is attention to lose.
GIVEN = st.sampled_from((*Tier, Tier.AGGRESSIVE, Tier.AGGRESSIVE, Tier.AGGRESSIVE))
NUMBERED = st.tuples(st.integers(0, len(RULES) - 1), GIVEN)
DRAFTS = st.builds(
    Draft,
    GIVEN,
    GIVEN,
    st.lists(NUMBERED, max_size=2, unique_by=lambda rule: rule[0]).map(tuple),
    st.sampled_from((None, None, None, *Tier)),
    st.sampled_from((False, False, False, True)),
    st.booleans(),
)
CAPS = st.sampled_from((Tier.DENSE, Tier.MODERATE))
SWITCHES = (
    (Scope.GLOBAL, "", CAPS),
    (Scope.DOMAIN, "chat", CAPS),
    (Scope.TENANT, "acme", CAPS),
    (Scope.TIER, "aggressive", CAPS),
    (Scope.TIER, "moderate", st.just(Tier.DENSE)),
)
ENDS = st.sampled_from((None, None, 50.0, 200.0))
OVERRIDES = st.sampled_from(SWITCHES).flatmap(
    lambda of: st.builds(Override, st.sampled_from("ab"), st.just(of[0]), st.just(of[1]), of[2], ENDS)
)
CHANGES = st.one_of(
    OVERRIDES.map(kill),
    OVERRIDES.map(kill),
    st.sampled_from("ab").map(unkill),
    st.builds(edit, st.sampled_from(DOMAINS), DRAFTS),
    st.builds(roll_out, st.sampled_from(DOMAINS), st.sampled_from((Tier.DENSE, Tier.MODERATE)), st.integers(1, 99)),
    st.sampled_from((0.0, 1e6)).map(age),
    st.builds(restart, WORKERS, SERVED, unread=st.booleans()),
)
DEEDS = ("answer", "fail", "fail", "fail", "fail", "full", "count", "break", "wait", "wait", "lie")
STEPS = st.builds(Step, st.none() | CHANGES, st.sampled_from(DEEDS))
ASKED = st.builds(
    Asked,
    length=st.integers(1, 400),
    domain=st.sampled_from((*DOMAINS * 4, "unknown", "", "", "")),
    secret=st.booleans(),
    flagged=st.sampled_from((*[False] * 9, True)),
    task=st.sampled_from(("", "qa")),
    severity=st.sampled_from((None, "high", "1", "4")),
    tenant=st.sampled_from(("", "acme")),
    session=st.sampled_from(("", "s1", "s2")),
    max_tier=st.sampled_from((*[None] * 9, Tier.MODERATE)),
    direct=st.sampled_from((False, False, False, True)),
    late=st.sampled_from((False, False, True)),
    n=st.sampled_from((1, 1, 1, 2, 3)),
)
ADMISSIONS = st.builds(
    Admission,
    queue_seconds=st.sampled_from((0.0, 0.05)),
    dense_reserve=st.sampled_from((0.0, 0.5)),
    hedge_seconds=st.sampled_from((0.0, 0.0, 0.005)),
)


def play_once(
    drafts: tuple[Draft, Draft],
    steps: list[Step],
    waits: list[Change | None],
    requests: list[Asked],
    admission: Admission,
    layout: Layout,
) -> None:
    world = World(dict(zip(DOMAINS, drafts, strict=True)), list(steps), list(waits), layout=layout)
    asyncio.run(play(world, requests, admission))
    assert not world.wrong, world.wrong


def test_each_answer_to_an_undeclared_request_is_judged() -> None:
    lax = Draft(Tier.AGGRESSIVE, Tier.AGGRESSIVE, taught=True)
    world = World({"chat": lax, "clinic": lax._replace(taught=False)}, [], [], layout=SHARED)
    asyncio.run(play(world, [Asked(9, domain="", n=3)], Admission()))
    assert (world.sent, world.spoken, world.wrong) == (3, {(0, 0), (0, 1), (0, 2)}, [])
    assert world.limit(Asked(9, domain="")) is Tier.AGGRESSIVE


def search(examples: int, *phases: Phase) -> None:
    """Looks for a request that gets less attention than policy gives it when its worker is asked."""
    found = given(
        st.tuples(DRAFTS, DRAFTS),
        st.lists(STEPS, min_size=2, max_size=12),
        st.lists(st.none() | st.none() | CHANGES, max_size=4),
        st.lists(ASKED, min_size=1, max_size=6),
        ADMISSIONS,
        LAYOUTS,
    )(play_once)
    wanted = settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    try:
        cast(Callable[[], None], settings(wanted, phases=phases or tuple(Phase))(found))()
    except FlakyFailure as once:
        # Found once and not again, since tasks may take turns otherwise: what was sent was sent.
        raise next((each for each in once.exceptions if isinstance(each, AssertionError)), once) from once


def unreviewed(patch: pytest.MonkeyPatch) -> None:
    """Every attempt is made by the first decision (A1)."""
    patch.setattr(Review, "__call__", lambda self: self.decision)


def unreviewed_hedges(patch: pytest.MonkeyPatch) -> None:
    """The second worker is of the first one's tier, whatever policy says by then (A1)."""
    patch.setattr(relay._Relay, "_allows", lambda self, tier: True)


def unreviewed_leases(patch: pytest.MonkeyPatch) -> None:
    """A lease is for what was decided before the wait for room (A1)."""
    place_ = inference.place_in_turn

    async def placed(fleet: Fleet, request: WorkerRequest, context: Any) -> Any:
        first = cast(Review, HeldReview(lambda: request.decided.review.decision))
        return await place_(fleet, replace(request, decided=replace(request.decided, review=first)), context)

    patch.setattr(inference, "place_in_turn", placed)


def unevaluable_rules(patch: pytest.MonkeyPatch) -> None:
    """A rule that cannot be evaluated is passed over (A3)."""
    decide_ = sys.modules[decide.__module__]
    patch.setattr(decide_, "_by_rules_and_bands", lambda *known: decide_._by_first_rule(*known, []))


def unshared_sessions(patch: pytest.MonkeyPatch) -> None:
    """What a session's requests got is not known (A6)."""

    async def nothing(*_: str) -> SessionTier:
        return SessionTier(None)

    patch.setattr(Sessions, "tier", nothing)
    patch.setattr(Sessions, "held", lambda *_: None)


def replayed_counts(patch: pytest.MonkeyPatch) -> None:
    """A worker's count sends a request on, also after its first message (A10)."""
    fell = relay._Relay._fell

    def falls(self: Any, attempt: Any, error: Any, *, first: bool) -> None:
        counts = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.OUT_OF_RANGE
        fell(self, attempt, error, first=first or counts)

    patch.setattr(relay._Relay, "_fell", falls)


def unproven_tiers(patch: pytest.MonkeyPatch) -> None:
    """A worker that proves one tier is believed at all that it serves."""
    patch.setattr(workers.Worker, "state_at", lambda self, tier: self.state)
    patch.setattr(workers.Worker, "trusted", property(lambda self: self.tiers))


def sparsest_of_shared(patch: pytest.MonkeyPatch) -> None:
    """A worker is asked at the sparsest tier that it serves, whatever it was picked for."""
    dispatch_ = relay.dispatch

    def dispatched(worker: Worker, request: Any, tier: Tier, *rest: Any) -> Any:
        return dispatch_(worker, request, max(worker.tiers), *rest[:3])

    patch.setattr(relay, "dispatch", dispatched)


def undoubted_exemplars(patch: pytest.MonkeyPatch) -> None:
    """What the sentence model said stands, whatever it would be asked by now."""
    patch.setattr(Resolved, "_asked", lambda self, scanned, snapshot: self.detection)


def believed_liars(patch: pytest.MonkeyPatch) -> None:
    """A worker that gave less attention than it was asked for is out at that tier only."""
    distrust = workers.Worker.distrust
    patch.setattr(workers.Worker, "distrust", lambda self, problem, tiers: distrust(self, problem, {min(tiers)}))


MUTATIONS = {
    made.__name__.replace("_", "-"): made
    for made in (
        unreviewed, unreviewed_hedges, unreviewed_leases, unevaluable_rules, unshared_sessions,
        replayed_counts, unproven_tiers, sparsest_of_shared, undoubted_exemplars, believed_liars,
    )
}  # fmt: skip


QUICKLY_FOUND = ("unreviewed", "unproven-tiers", "sparsest-of-shared")


@pytest.fixture
def mutation(request: pytest.FixtureRequest) -> str:
    """The fault that is put back, to see that it is found; empty for none."""
    # Only where this file is named on the command line is the option known.
    name = request.config.getoption("--mutation", None) or ""
    if name and name not in MUTATIONS:
        raise pytest.UsageError(f"--mutation {name}: there are {', '.join(MUTATIONS)}")
    return name


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """Shortens what is waited for."""
    monkeypatch.setattr(workers, "_REFUSED_SECONDS", 0.003)
    monkeypatch.setattr(queue, "_BREATH_SECONDS", 0.001)
    if mutation:
        MUTATIONS[mutation](monkeypatch)


def test_no_attempt_gives_less_attention_than_policy_gives_by_then(mutation: str) -> None:
    if mutation:
        # However rare it is; that it is found says enough, and the smallest example takes minutes.
        search(3000, Phase.generate)
    search(300)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICKLY_FOUND else pytest.mark.chaos) for name in MUTATIONS]
)
def test_a_fault_that_is_put_back_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    MUTATIONS[name](monkeypatch)
    with pytest.raises(AssertionError, match="was sent") as found:
        search(3000, Phase.generate)
    came = str(found.value).partition(" was sent")[2].splitlines()[0]
    tell("A11", f"{name}, put back into a whole router", f"found: a request was sent{came}", "up to five more at once")
