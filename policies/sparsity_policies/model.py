"""Policies and decisions as frozen values; field meanings are those of `sparsity.v1`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from sparsity_rpc.tiers import Tier as Tier

# How old policies may be until everything goes dense, unless a router is told.
TTL_SECONDS = 300.0


class Risk(IntEnum):
    """How much harm a wrong answer can do. Values equal `sparsity.v1.Risk`."""

    LOW = 1
    ELEVATED = 2
    HIGH = 3


class Reason(IntEnum):
    """Why a request got its tier. Values equal `sparsity.v1.Reason`."""

    RULE_MATCH = 1
    LENGTH_BAND = 2
    ROLLOUT_SPLIT = 3
    KILL_SWITCH = 4
    FLAGGED = 5
    UNKNOWN_DOMAIN = 6
    STALE_POLICY = 7
    CLASSIFIER_FAILED = 8
    LOW_CONFIDENCE = 9
    SCAN_TRUNCATED = 10
    TIER_UNAVAILABLE = 11
    MISSING_TELEMETRY = 12
    CALLER_REQUESTED = 13
    GUARD = 14
    SESSION = 15
    TIER_FULL = 16


class StickyBy(StrEnum):
    """What keeps its side of a rollout."""

    SESSION = "session"
    TENANT = "tenant"
    REQUEST = "request"


class Sensitivity(StrEnum):
    """How little of a domain is enough for a text to be taken for one of it."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class DetectionMode(StrEnum):
    """What becomes of a request whose text is like a riskier domain than its own."""

    ACT = "act"
    OBSERVE = "observe"
    OFF = "off"


class Scope(IntEnum):
    """What an override acts on. Values equal `sparsity.v1.OverrideScope`."""

    GLOBAL = 1
    DOMAIN = 2
    TENANT = 3
    TIER = 4


@dataclass(frozen=True, slots=True)
class Band:
    """A tier from a prompt length on, for one task or, with an empty task, for all without bands of their own."""

    from_tokens: int
    tier: Tier
    task: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL condition and the tier it gives."""

    name: str
    when: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class Detection:
    """What the scan of a prompt looks for, and the flag a match raises.

    ``exemplars`` are learnt by the model that reads whole prompts; ``sensitivity`` and ``mode`` say what that leads to.
    Without a mode no request is moved to the domain, and its own are read where other domains ask for it.
    """

    literals: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    exemplars: tuple[str, ...] = ()
    flag: str = ""
    sensitivity: Sensitivity = Sensitivity.NORMAL
    mode: DetectionMode | None = None


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits that hold whatever rules and bands say; ``quality_metric`` tells the dip, and where empty any metric."""

    min_coverage: float | None = None
    max_quality_dip: float | None = None
    quality_metric: str = ""
    max_tier: Tier | None = None
    reasoning_spans_dense: bool | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout by percentage; ``pauses`` are the seconds that each step lasts before the next begins by itself."""

    steps: tuple[int, ...] = ()
    step: int = 0
    sticky_by: StickyBy = StickyBy.SESSION
    paused: bool = False
    halted: bool = False
    halt_reason: str = ""
    held_back: Tier = Tier.DENSE
    pauses: tuple[int, ...] = ()

    @property
    def percent(self) -> int:
        """Share of the traffic that is let through now."""
        return 0 if self.halted else self.steps[self.step]

    @property
    def state(self) -> str:
        """`halted`, `complete`, `paused` or `active`."""
        if self.halted:
            return "halted"
        if self.step == len(self.steps) - 1:
            return "complete"
        return "paused" if self.paused else "active"


@dataclass(frozen=True, slots=True)
class Shadow:
    """Comparison with dense on live traffic."""

    percent: float = 0.0
    tokens_per_minute: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy of one domain."""

    domain: str
    risk: Risk
    bands: tuple[Band, ...]
    rules: tuple[Rule, ...] = ()
    detection: Detection = field(default_factory=Detection)
    guards: Guards = field(default_factory=Guards)
    rollout: Rollout | None = None
    shadow: Shadow | None = None
    fallback: tuple[Tier, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    owner: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy with what the store knows of it; ``update_time`` in seconds since the epoch, by the store's clock."""

    policy: Policy
    etag: str
    revision: int
    update_time: float
    actor: str
    reason: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Override:
    """A kill switch: caps the tier while active.

    ``expire_time`` in seconds since the epoch; ``revision`` of the store at which it was written, 0 where it was not.
    """

    id: str
    scope: Scope
    target: str = ""
    max_tier: Tier = Tier.DENSE
    expire_time: float | None = None
    reason: str = ""
    actor: str = ""
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of one request.

    Attributes:
        min_tokens: prompt tokens, at least.
        max_tokens: prompt tokens, at most; equal when exact.
        domain: the declared or detected domain; empty when there is none.
        detected: whether the domain was detected in place of being declared.
        flags: raised by the caller and by the scan.
        task: the declared task.
        labels: the declared labels.
        tenant: the declared tenant.
        session: the declared session.
        max_tier: the sparsest tier the caller accepts.
        scanned_bytes: bytes that were scanned.
        prompt_bytes: bytes there were to scan, of the prompt and of what comes with it.
        classifier_error: what kept the classifier from an answer; empty when nothing did.
        request_key: unique to the request; what a rollout by request splits by.
        received_at: when the request came, seconds since the epoch.
        policy_age: since the snapshot was last confirmed to be current, seconds.
        declared: the declared domain, where a riskier one was detected and took its place; else empty.
        confidence: in a detected domain, in [0, 1].
        session_tier: the densest that the session's earlier requests hold it at, of any length; None without any.
        dense_reasoning: whether the caller asks that reasoning spans decode densely.
        model: that serves the request, by the router's name for it; empty is none in particular.
        also: other domains of the same risk that were found, each of whose policies may only make it denser.
    """

    min_tokens: int
    max_tokens: int
    domain: str = ""
    detected: bool = False
    flags: frozenset[str] = frozenset()
    task: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    tenant: str = ""
    session: str = ""
    max_tier: Tier | None = None
    scanned_bytes: int = 0
    prompt_bytes: int = 0
    classifier_error: str = ""
    received_at: float = 0.0
    policy_age: float = 0.0
    request_key: str = ""
    declared: str = ""
    confidence: float = 1.0
    session_tier: Tier | None = None
    dense_reasoning: bool = False
    model: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One check of a decision: what it looked at, whether it decided or capped, and the tier it gives."""

    check: str
    matched: bool
    detail: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome.

    ``tier`` is what serves the request, ``policy_tier`` what policy gave before any fallback, ``dense_reasoning``
    whether reasoning spans decode densely, and ``lasting`` what policy gives but for what passes, such as a kill switch
    or a rollout: None where that cannot be told.
    """

    tier: Tier
    reason: Reason
    matched_rule: str
    policy: str
    policy_revision: int
    policy_tier: Tier
    explanation: str
    fallback: tuple[Tier, ...] = ()
    steps: tuple[Step, ...] = ()
    dense_reasoning: bool = False
    lasting: Tier | None = None
