"""Requests through a whole router over fake workers, while policies, switches and workers change at every step.

Workers serve a tier each, or several, and come back with others.

What may serve a request is said here by words of policy, independently of the decision function.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import grpc
from grpc.aio import AioRpcError, Metadata
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.rollout import Action, bucket, move
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Decision, Guards, Override, Policy, Rollout, Scope, Tier
from sparsity_router.callers.admission import Callers
from sparsity_router.decisions.sessions import Sessions
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.workers import Worker
from sparsity_router.models.models import Model, Models
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.domains import Score
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_router.services.inference import InferenceService
from sparsity_rpc.errors import InvalidRequestError, SparsityError
from sparsity_rpc.status import to_status
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from support.stores.snapshots import stored
from support.tiny import tiny_model

DOMAINS = ("chat", "clinic")
RISKS = dict(zip(DOMAINS, ("low", "elevated"), strict=True))
# Seeds from one request to the next: a worker is told the request's and its answer's number by them.
_STRIDE = 16
SECRET = "for internal eyes"
NOW, TTL = 100.0, 300.0
_KEYS = LeaseKeys(LeaseKey("", b"k" * 32))


class Asked(NamedTuple):
    """A request for ``n`` answers; ``direct`` asks for a lease of one in their place; ``late`` comes after others."""

    length: int
    domain: str = "chat"
    secret: bool = False
    flagged: bool = False
    task: str = ""
    severity: str | None = None
    tenant: str = ""
    session: str = ""
    max_tier: Tier | None = None
    direct: bool = False
    late: bool = False
    n: int = 1

    @property
    def text(self) -> str:
        return f"{SECRET} {'y' * self.length}" if self.secret else "y" * self.length


class Written(NamedTuple):
    """A CEL condition, and what it means; None where it cannot be evaluated."""

    source: str
    holds: Callable[[Asked], bool | None]


def _severe(asked: Asked) -> bool | None:
    return int(asked.severity) >= 3 if asked.severity and asked.severity.isdigit() else None


RULES = (
    Written("task == 'qa'", lambda asked: asked.task == "qa"),
    Written("int(labels['severity']) >= 3", _severe),
    Written("tokens > 150", lambda asked: len(asked.text) > 150),
    Written("tenant == 'acme'", lambda asked: asked.tenant == "acme"),
)


class Draft(NamedTuple):
    """What a test says of one domain's policy: tiers below and from 200 tokens, rules by number, and the rest.

    One that is ``taught`` has exemplars, so that undeclared requests may be taken for it.
    """

    low: Tier
    high: Tier
    rules: tuple[tuple[int, Tier], ...] = ()
    cap: Tier | None = None
    watches: bool = False
    taught: bool = False

    def of(self, domain: str) -> Policy:
        """The policy."""
        bands = [{"from_tokens": 0, "tier": self.low.word}, {"from_tokens": 200, "tier": self.high.word}]
        rules = [{"name": f"r{n}", "when": RULES[n].source, "tier": tier.word} for n, tier in self.rules]
        document = {"domain": domain, "risk": RISKS[domain], "bands": bands, "rules": rules}
        # The linear model reads nothing: what the sentence model says is told by the test.
        detection: dict[str, Any] = {"mode": "off"}
        if self.watches:
            detection |= {"literals": [SECRET], "flag": "leak"}
        if self.taught:
            detection |= {"exemplars": [f"what is said in {domain}"]}
        document["detection"] = detection
        return replace(parse_policy(document), guards=Guards(max_tier=self.cap))


Change = Callable[["World"], None]


def edit(domain: str, draft: Draft) -> Change:
    """Writes a policy."""
    return lambda world: world.set(draft.of(domain), draft)


def roll_out(domain: str, held: Tier, first: int) -> Change:
    """Begins a rollout."""
    rollout = Rollout((first, 100), held_back=held)
    return lambda world: world.set(move(replace(world.policies[domain], rollout=None), Action.START, rollout))


def kill(override: Override) -> Change:
    """Sets an override."""
    return lambda world: world.switch({**world.overrides, override.id: override})


def unkill(name: str) -> Change:
    """Ends an override."""
    return lambda world: world.switch({key: value for key, value in world.overrides.items() if key != name})


def age(seconds: float) -> Change:
    """Lets the store be away for so long, or come back."""
    return lambda world: setattr(world, "age", seconds)


class Served(NamedTuple):
    """The tiers that a worker serves, those that it does not prove, and whether it decodes reasoning densely."""

    tiers: frozenset[Tier]
    unproven: frozenset[Tier] = frozenset()
    densifies: bool = True

    @property
    def usable(self) -> frozenset[Tier]:
        """The tiers that it may be asked at."""
        return self.tiers - self.unproven

    def capabilities(self, name: str) -> worker_pb2.GetCapabilitiesResponse:
        """What such a worker says of itself; of one tier as workers did that know no more."""
        told = [self._told(tier) for tier in sorted(self.tiers)]
        densest = told[0]
        return worker_pb2.GetCapabilitiesResponse(
            worker_id=name, tier=densest.tier, max_requests=2, tokenizer_digest="digest", proof=densest.proof,
            dense_reasoning=densest.dense_reasoning, tiers=told if len(told) > 1 else (),
        )  # fmt: skip

    def _told(self, tier: Tier) -> worker_pb2.TierCapabilities:
        calls = int((tier is not Tier.DENSE) is (tier in self.usable))
        proof = worker_pb2.BackendProof(sparse_kernel_calls=calls)
        return worker_pb2.TierCapabilities(tier=tier.value, proof=proof, dense_reasoning=self.densifies)  # type: ignore[arg-type]


Layout = dict[str, Served]
POOLS: Layout = {f"{tier.word}{number}": Served(frozenset({tier})) for tier in Tier for number in range(2)}
SHARED: Layout = {f"shared{number}": Served(frozenset(Tier)) for number in range(2)}
MIXED: Layout = {
    "shared": Served(frozenset(Tier)),
    "doubtful": Served(frozenset(Tier), frozenset({Tier.AGGRESSIVE})),
    "dense": Served(frozenset({Tier.DENSE})),
    "sparse": Served(frozenset({Tier.MODERATE, Tier.AGGRESSIVE})),
}


def restart(number: int, served: Served, *, unread: bool) -> Change:
    """Lets a worker come back with other tiers, which the router does not know of before it asks where ``unread``."""
    return lambda world: world.restart(number, served, unread=unread)


class Step(NamedTuple):
    """What a worker does: something changes, then it answers, fails, is full, counts, breaks off, waits or lies."""

    change: Change | None = None
    does: str = "answer"


@dataclass
class World:
    """Policies, overrides and workers as they are now, and what was seen of requests."""

    drafts: dict[str, Draft]
    steps: list[Step]
    waits: list[Change | None]
    age: float = 0.0
    policies: dict[str, Policy] = field(default_factory=dict)
    overrides: dict[str, Override] = field(default_factory=dict)
    sessions: dict[tuple[str, str], Tier] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    spoken: set[tuple[int, int]] = field(default_factory=set)
    layout: Layout = field(default_factory=lambda: POOLS)
    fleet: Fleet | None = None
    liars: set[str] = field(default_factory=set)
    readings: Counter[str] = field(default_factory=Counter)
    lies: dict[tuple[int, int], int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    snapshot: Any = None

    def __post_init__(self) -> None:
        self.policies = {domain: draft.of(domain) for domain, draft in self.drafts.items()}
        self.layout = dict(self.layout)
        self.build()

    def now(self) -> float:
        """By the policies' clock."""
        return NOW

    def build(self) -> None:
        """Puts what is there in force."""
        documents = [stored(policy) for policy in self.policies.values()]
        self.snapshot = Snapshot.build(1, documents, self.overrides.values(), ttl=TTL, previous=self.snapshot)

    def set(self, policy: Policy, draft: Draft | None = None) -> None:
        """Puts a policy in force."""
        self.policies[policy.domain] = policy
        self.drafts |= {policy.domain: draft} if draft else {}
        self.build()

    def switch(self, overrides: dict[str, Override]) -> None:
        """Puts overrides in force."""
        self.overrides = overrides
        self.snapshot = self.snapshot.with_overrides(overrides.values())

    def change(self, change: Change | None) -> None:
        """Makes a change, where there is one."""
        if change is not None:
            change(self)

    def acting(self) -> list[Override]:
        """Overrides that have not run out."""
        return [o for o in self.overrides.values() if o.expire_time is None or o.expire_time > NOW]

    def domain(self, asked: Asked) -> str:
        """What a request is of by now: an undeclared one is like all that is taught, of which the riskiest counts."""
        taught = [name for name in DOMAINS if name in self.drafts and self.drafts[name].taught]
        return asked.domain or (taught[-1] if taught else "")

    def lasting(self, asked: Asked, *, grown: bool = True) -> Tier:
        """How sparse policy lets a request be, but for what passes: switches, staleness, rollouts, its caller.

        Of its length what longer ones may get lasts; the request itself has not ``grown``.
        """
        domain = self.domain(asked)
        watching = [name for name, draft in self.drafts.items() if draft.watches]
        if asked.secret and watching:
            return Tier.DENSE
        if asked.flagged or domain not in self.policies:
            return Tier.DENSE
        draft = self.drafts[domain]
        short = len(asked.text) < 200
        limits = [max(draft.low if short else draft.high, draft.high if grown else Tier.DENSE)]
        for number, tier in draft.rules:
            holds = RULES[number].holds(asked)
            if holds is None:
                limits.append(tier)
            elif holds:
                limits = [tier, *limits[1:]]
                break
        return min([*limits, draft.cap or Tier.AGGRESSIVE])

    def limit(self, asked: Asked) -> Tier:
        """How sparse a request may be served at most now."""
        limits = [self.lasting(asked, grown=False), asked.max_tier or Tier.AGGRESSIVE]
        limits.append(self.sessions.get((asked.tenant, asked.session), Tier.AGGRESSIVE))
        if self.age > TTL:
            return Tier.DENSE
        if held := self.held_back(asked):
            limits.append(held)
        targets = {Scope.GLOBAL: "", Scope.DOMAIN: self.domain(asked), Scope.TENANT: asked.tenant}
        limits += [o.max_tier for o in self.acting() if o.scope in targets and o.target == targets[o.scope]]
        return min(limits)

    def held_back(self, asked: Asked) -> Tier | None:
        """The tier that a rollout holds a request back at."""
        policy = self.policies.get(self.domain(asked))
        rollout = policy.rollout if policy else None
        if rollout is None or rollout.percent >= 100:
            return None
        inside = asked.session and bucket(self.domain(asked), asked.session) < rollout.percent
        return None if inside else rollout.held_back

    def begins(self, asked: Asked) -> None:
        """Takes note of what a request's session gets, but for what passes and may be denser.

        An undeclared one may be in doubt, which says nothing of its session.
        """
        rules = self.drafts[asked.domain].rules if asked.domain in self.drafts else ()
        doubtful = any(RULES[number].holds(asked) is None for number, _ in rules)
        if asked.session and asked.domain and self.age <= TTL and not doubtful:
            key = (asked.tenant, asked.session)
            self.sessions[key] = min(self.sessions.get(key, Tier.AGGRESSIVE), self.lasting(asked))

    def restart(self, number: int, served: Served, *, unread: bool) -> None:
        """Lets a worker come back with other tiers."""
        name = sorted(self.layout)[number % len(self.layout)]
        self.layout[name] = served
        if not unread:
            self.read(name)

    def read(self, name: str) -> None:
        """Lets the router know what a worker serves by now."""
        for worker in self.fleet.workers if self.fleet else ():
            if worker.target == name:
                worker.capabilities = self.layout[name].capabilities(name)
                self.liars.discard(name)
                self.readings[name] += 1

    def sees(self, number: int, worker: Worker, tier: int, answer: int = 0) -> None:
        """Judges one attempt for an answer, at the moment at which its worker is asked at ``tier``."""
        asked, word = self.asked[number], Tier(tier).word
        self.sent += 1
        limit = self.limit(asked)
        killed = {o.target for o in self.acting() if o.scope is Scope.TIER}
        if tier > limit:
            self.wrong.append(f"{asked} was sent to {word}, and may have {limit.word}")
        if word in killed and tier != Tier.DENSE:
            self.wrong.append(f"{asked} was sent to {word}, which is killed")
        if (number, answer) in self.spoken:
            self.wrong.append(f"{asked} was sent again after its first message")
        if worker.target in self.liars:
            self.wrong.append(f"{asked} was sent to {worker.target}, which gave another less than it was asked for")
        told = cast(Any, worker.capabilities)
        calls = {own.tier: own.proof.sparse_kernel_calls for own in (told.tiers or [told])}
        if tier not in calls or bool(calls[tier]) is (tier == Tier.DENSE):
            self.wrong.append(f"{asked} was sent to {worker.target} at {word}, which it does not serve and prove")
        # It was decided anew for this attempt.
        self.begins(asked)


class Stub:
    """The service of one fake worker, in this process."""

    def __init__(self, world: World, worker: Worker) -> None:
        self._world = world
        self._worker = worker

    def Generate(self, request: Any, timeout: float | None, metadata: Any) -> Stub.Call:
        """Begins at once, so that an attempt is judged by what holds when it is made."""
        number, answer = divmod(request.sampling.seed, _STRIDE)
        self._world.sees(number, self._worker, request.tier, answer)
        step = self._world.steps.pop(0) if self._world.steps else Step()
        return Stub.Call(self._answer(request, step))

    async def _answer(self, request: Any, step: Step) -> AsyncIterator[worker_pb2.WorkerServiceGenerateResponse]:
        await asyncio.sleep(0)
        self._world.change(step.change)
        name = self._worker.target
        if request.tier not in self._world.layout[name].tiers:
            # The router reads what it serves once it was told.
            self._world.read(name)
            refusal = to_status(InvalidRequestError.of("tier", "is not served here"))
            raise _error(grpc.StatusCode.INVALID_ARGUMENT, ("grpc-status-details-bin", refusal.SerializeToString()))
        codes = {"fail": grpc.StatusCode.INTERNAL, "full": grpc.StatusCode.RESOURCE_EXHAUSTED}
        if step.does in codes:
            raise _error(codes[step.does])
        if step.does == "count" and request.HasField("text"):
            raise _error(grpc.StatusCode.OUT_OF_RANGE)
        if step.does == "wait":
            await asyncio.sleep(0.02)
        yield _message(inference_pb2.GenerateResponse(text="a", token_ids=[1]))
        if step.does == "break":
            raise _error(grpc.StatusCode.OUT_OF_RANGE)
        if step.does == "lie":
            self._world.lies[divmod(request.sampling.seed, _STRIDE)] = self._world.readings[name]
        completion = inference_pb2.Completion(worker_id=name)
        completion.sparsity.tier = Tier.AGGRESSIVE.value if step.does == "lie" else request.tier  # type: ignore[assignment]
        completion.sparsity.kernel_calls = 1
        yield _message(inference_pb2.GenerateResponse(completion=completion))

    class Call:
        """A stream that can be let go."""

        def __init__(self, messages: AsyncIterator[Any]) -> None:
            self._messages = messages

        def __aiter__(self) -> AsyncIterator[Any]:
            return self._messages

        def cancel(self) -> None:
            """Ends it."""


def _message(response: inference_pb2.GenerateResponse) -> worker_pb2.WorkerServiceGenerateResponse:
    return worker_pb2.WorkerServiceGenerateResponse(response=response)


def _error(code: grpc.StatusCode, *trailers: tuple[str, bytes]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailers), "as told")


class HeldReview:
    """In the place of a review, what ``decision`` says, and nothing to read for it."""

    is_quick = True

    def __init__(self, decision: Callable[[], Decision]) -> None:
        self._decision = decision

    def __call__(self) -> Decision:
        """The decision."""
        return self._decision()

    async def catch_up(self) -> None:
        """Nothing."""


class Context:
    """The call of a client without metadata or deadline."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Not looked at."""

    def invocation_metadata(self) -> None:
        """None."""

    def time_remaining(self) -> None:
        """No deadline."""


class Waiting(Callers):
    """Counts tokens in a store that is waited for, in which something changes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def charge(self, *_: Any) -> None:
        await asyncio.sleep(0)
        self._world.change(self._world.waits.pop(0) if self._world.waits else None)


class ByExemplars:
    """In the place of the sentence model: to it every text is like all that is taught."""

    async def detect(self, text: str, at: Snapshot) -> dict[str, Score]:
        """Alike of each domain."""
        taught = (domain for domain, item in at.policies.items() if item.policy.detection.exemplars)
        return dict.fromkeys(taught, Score(0.9, 0.9))


@cache
def _classifier() -> Classifier:
    with TemporaryDirectory() as folder:
        return Classifier(ModelTokenizer(tiny_model(Path(folder)), "tiny"), 10_000, cast(Any, ByExemplars()))


def fleet_of(layout: Layout, admission: Admission) -> Fleet:
    """Workers that are always heard, and take two requests each."""
    fleet = Fleet((), "digest", 1e9, _KEYS, admission)
    for name, served in layout.items():
        worker = Worker(name, "digest", 1e9, fleet._room)
        worker.capabilities = served.capabilities(name)
        worker._heard = time.monotonic()
        fleet.workers.append(worker)
    return fleet


async def play(world: World, requests: list[Asked], admission: Admission) -> None:
    """Sends all requests at once, and waits for what becomes of them; what was wrong lies in the world."""
    fleet = world.fleet = fleet_of(world.layout, admission)
    for worker in fleet.workers:
        worker.stub = cast(Any, Stub(world, worker))
        # One that fails is heard again at once: how workers come back is tested elsewhere.
        worker.failed = lambda problem: None  # type: ignore[method-assign]
    policies = cast(Any, world)
    models = Models(Model(_classifier(), fleet))
    service = InferenceService(models, policies, lease_keys=_KEYS, sessions=Sessions(), callers=Waiting(world))
    world.asked = list(requests)
    await asyncio.gather(*(_ask(world, service, fleet, number) for number in range(len(requests))))
    await fleet.close()


async def _ask(world: World, service: InferenceService, fleet: Fleet, number: int) -> None:
    asked = world.asked[number]
    labels = {} if asked.severity is None else {"severity": asked.severity}
    request = make_request(
        asked.text, domain=asked.domain, flags=["abuse"] if asked.flagged else [], task=asked.task, labels=labels,
        tenant=asked.tenant, session=asked.session, max_tier=asked.max_tier.value if asked.max_tier else None,  # type: ignore[arg-type]
    )  # fmt: skip
    # A lease is good for one answer; for more it is refused, which says nothing of the session.
    request.sampling.seed, request.n = number * _STRIDE, 1 if asked.direct else asked.n
    context = cast(Any, Context())
    if asked.late:
        await asyncio.sleep(0.005)
    world.begins(asked)
    try:
        if asked.direct:
            routed = await service.Route(inference_pb2.RouteRequest(request=request), context)
            found = {worker.target: worker for worker in fleet.workers}
            world.sees(number, found[routed.endpoint], routed.decision.tier)
            return
        async for response in service.Generate(request, context):
            world.spoken.add((number, response.choice))
            name, told = response.completion.worker_id, world.lies.get((number, response.choice))
            # Of several answers one may wait to be read, and its worker prove itself anew meanwhile.
            if response.completion.sparsity.tier > response.completion.decision.tier and told == world.readings[name]:
                world.liars.add(name)
    except SparsityError:
        # Refused or broken off: never answered with less attention.
        return
