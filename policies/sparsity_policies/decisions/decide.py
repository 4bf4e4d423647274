"""The decision: a pure function of signals and snapshot, shared by the live path, explain, simulate and replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from sparsity_policies.decisions.rollout import lets_through, sticky_key
from sparsity_policies.decisions.snapshot import Compiled, Snapshot
from sparsity_policies.matching.conditions import context
from sparsity_policies.model import Band, Decision, Override, Policy, Reason, Risk, Rule, Scope, Signals, Step, Tier

DEFAULT_DOMAIN = "default"
# A detected domain that is less certain is none.
MIN_CONFIDENCE = 0.4
# These pass, or say nothing of the conversation; of a length only what longer prompts may get lasts.
_PASSING = {
    Reason.LENGTH_BAND,
    Reason.KILL_SWITCH,
    Reason.ROLLOUT_SPLIT,
    Reason.STALE_POLICY,
    Reason.CLASSIFIER_FAILED,
    Reason.SCAN_TRUNCATED,
    Reason.CALLER_REQUESTED,
}


class _Verdict(NamedTuple):
    tier: Tier
    reason: Reason
    matched: str
    explanation: str


class _Trail:
    """The checks of one decision, in order; the last one that changes the verdict wins.

    Attributes:
        steps: the checks.
        verdict: so far.
        lasting: the densest so far of what does not pass, also where something that does is denser.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lasting: Tier | None = None
        self.verdict = _Verdict(Tier.DENSE, Reason.UNKNOWN_DOMAIN, "", "nothing decided")

    def skip(self, check: str, detail: str, tier: Tier) -> None:
        self.steps.append(Step(check, False, detail, tier))

    def settle(self, check: str, tier: Tier, reason: Reason, detail: str) -> None:
        self.steps.append(Step(check, True, detail, tier))
        self.verdict = _Verdict(tier, reason, check, detail)
        self.note(None if reason in _PASSING else tier)

    def cap(self, check: str, tier: Tier, reason: Reason, detail: str) -> None:
        """Takes ``tier`` only when it is denser than the verdict so far."""
        if tier < self.verdict.tier:
            self.settle(check, tier, reason, detail)
        else:
            self.skip(check, detail, tier)
            self.note(None if reason in _PASSING else tier)

    def note(self, tier: Tier | None) -> None:
        """Takes ``tier`` into what lasts."""
        self.lasting = min((one for one in (self.lasting, tier) if one is not None), default=None)


def decide(signals: Signals, snapshot: Snapshot) -> Decision:
    """Decides one request; in doubt, dense."""
    compiled = snapshot.compiled(signals.domain, signals.model)
    trail = _Trail()
    doubt = _doubt(signals, snapshot, compiled)
    if doubt is not None:
        trail.settle(doubt.matched, doubt.tier, doubt.reason, doubt.explanation)
    else:
        assert compiled is not None
        _by_policy(trail, signals, compiled)
        _by_beside(trail, "declared", signals.declared, signals, snapshot)
        for name in signals.also:
            _by_beside(trail, "also", name, replace(signals, detected=True), snapshot)
        _by_session(trail, signals)
    if signals.max_tier is not None:
        what = f"the caller asks for {signals.max_tier.word} or denser"
        trail.cap("max_tier", signals.max_tier, Reason.CALLER_REQUESTED, what)
    for override in snapshot.overrides:
        if _applies(override, signals, trail.verdict.tier):
            what = f"override {override.id} caps at {override.max_tier.word}: {override.reason or 'no reason given'}"
            trail.cap(f"overrides[{override.id}]", override.max_tier, Reason.KILL_SWITCH, what)
    verdict = trail.verdict
    policy = compiled.policy if compiled else None
    return Decision(
        tier=verdict.tier,
        reason=verdict.reason,
        matched_rule=verdict.matched,
        policy=policy.domain if policy else DEFAULT_DOMAIN,
        policy_revision=snapshot.revision,
        policy_tier=verdict.tier,
        explanation=verdict.explanation,
        fallback=tuple(
            tier
            for tier in fallback_order(verdict.tier, policy)
            if not any(o.scope is Scope.TIER and _applies(o, signals, tier) for o in snapshot.overrides)
        ),
        steps=tuple(trail.steps),
        dense_reasoning=signals.dense_reasoning or any(_holds_reasoning_dense(signals, snapshot)),
        lasting=trail.lasting,
    )


def _holds_reasoning_dense(signals: Signals, snapshot: Snapshot) -> Iterator[bool]:
    """Whether each policy that has a say holds reasoning spans dense: that of the domain, and those beside it."""
    for domain in (signals.domain, signals.declared, *signals.also):
        if (compiled := snapshot.policies.get(domain)) is not None:
            yield bool(compiled.policy.guards.reasoning_spans_dense)


def fallback_order(tier: Tier, policy: Policy | None) -> tuple[Tier, ...]:
    """Tiers to try when ``tier`` has no worker: the policy's order, else every denser tier; never a sparser one."""
    wanted = policy.fallback if policy and policy.fallback else tuple(reversed(Tier))
    return tuple(other for other in wanted if other < tier)


def _doubt(signals: Signals, snapshot: Snapshot, compiled: Compiled | None) -> _Verdict | None:
    """The first doubt there is, as a dense verdict."""

    def dense(reason: Reason, check: str, detail: str) -> _Verdict:
        return _Verdict(Tier.DENSE, reason, check, detail)

    if signals.policy_age > snapshot.ttl:
        detail = (
            f"policies were last confirmed {signals.policy_age:.0f} s ago; their time to live is {snapshot.ttl:.0f} s"
        )
        return dense(Reason.STALE_POLICY, "policy_age", detail)
    if signals.classifier_error:
        return dense(Reason.CLASSIFIER_FAILED, "classifier", signals.classifier_error)
    if signals.scanned_bytes < signals.prompt_bytes:
        detail = f"{signals.scanned_bytes} of {signals.prompt_bytes} bytes were scanned"
        return dense(Reason.SCAN_TRUNCATED, "scan", detail)
    if signals.flags:
        return dense(Reason.FLAGGED, "flags", f"flagged {', '.join(sorted(signals.flags))}")
    if compiled is None:
        detail = f"domain {signals.domain!r} has no policy" if signals.domain else "no domain was declared or detected"
        return dense(Reason.UNKNOWN_DOMAIN, "domain", detail)
    if signals.detected and signals.confidence < MIN_CONFIDENCE:
        detail = (
            f"domain {signals.domain} was detected with confidence {signals.confidence:.2f}, below {MIN_CONFIDENCE}"
        )
        return dense(Reason.LOW_CONFIDENCE, "domain", detail)
    return None


def hangs_on_length(signals: Signals, snapshot: Snapshot) -> bool:
    """Whether token counts within the signals' interval give different tiers, so that the exact one must be known."""
    compiled = snapshot.compiled(signals.domain, signals.model)
    if _exact(signals) or compiled is None or _doubt(signals, snapshot, compiled) is not None:
        return False
    beside = (snapshot.compiled(name, signals.model) for name in (signals.declared, *signals.also))
    for item in (compiled, *(item for item in beside if item)):
        if any(condition.reads_tokens for condition in item.conditions):
            return True
        if len({band.tier for _, band in _touched(item.policy, signals)}) > 1:
            return True
    return False


def _exact(signals: Signals) -> bool:
    return signals.min_tokens == signals.max_tokens


def _length(signals: Signals) -> str:
    return f"{signals.min_tokens}" if _exact(signals) else f"{signals.min_tokens} to {signals.max_tokens}"


def _by_policy(trail: _Trail, signals: Signals, compiled: Compiled) -> None:
    _by_rules_and_bands(trail, signals, compiled)
    _by_guards(trail, compiled.policy)
    _by_rollout(trail, signals, compiled.policy)


def _by_beside(trail: _Trail, what: str, domain: str, signals: Signals, snapshot: Snapshot) -> None:
    """A domain in the place of another, declared or found alike, takes attention away from nobody."""
    beside = snapshot.compiled(domain, signals.model)
    if beside is not None:
        own = _Trail()
        _by_policy(own, replace(signals, domain=domain, declared="", also=()), beside)
        found = own.verdict
        trail.cap(f"{what}[{domain}]", found.tier, found.reason, f"{what}: {found.explanation}")
        trail.note(own.lasting)


def _by_session(trail: _Trail, signals: Signals) -> None:
    if signals.session_tier is not None:
        what = f"the session's earlier requests hold it at {signals.session_tier.word}"
        trail.cap("session", signals.session_tier, Reason.SESSION, what)


def _by_rules_and_bands(trail: _Trail, signals: Signals, compiled: Compiled) -> None:
    """The first rule that holds, or the band of the length.

    A rule that cannot be evaluated might have held: what follows it is capped at its tier.
    """
    doubtful: list[Rule] = []
    _by_first_rule(trail, signals, compiled, doubtful)
    for rule in doubtful:
        what = f"{rule.when} cannot be evaluated, and might have held"
        trail.cap(f"rules[{rule.name}]", rule.tier, Reason.CLASSIFIER_FAILED, what)


def _by_first_rule(trail: _Trail, signals: Signals, compiled: Compiled, doubtful: list[Rule]) -> None:
    """Goes by rules up to one that holds, then by bands; rules that cannot be evaluated go to ``doubtful``."""
    shared = context(signals) if compiled.conditions else None
    for rule, condition in zip(compiled.policy.rules, compiled.conditions, strict=True):
        check = f"rules[{rule.name}]"
        if condition.reads_tokens and not _exact(signals):
            what = f"{rule.when} reads tokens, of which there are {_length(signals)}"
            trail.settle(check, Tier.DENSE, Reason.LOW_CONFIDENCE, what)
            return
        assert shared is not None
        try:
            holds = condition.holds(shared)
        except ValueError as error:
            if rule.tier is Tier.DENSE:
                trail.settle(check, Tier.DENSE, Reason.CLASSIFIER_FAILED, f"{rule.when} cannot be evaluated: {error}")
                return
            trail.skip(check, f"cannot be evaluated: {error}", rule.tier)
            doubtful.append(rule)
            continue
        if holds:
            trail.settle(check, rule.tier, Reason.RULE_MATCH, f"{rule.when} holds")
            return
        trail.skip(check, f"{rule.when} does not hold", rule.tier)
    number, band = densest_band(compiled.policy, signals)
    task = f" for task {band.task!r}" if band.task else ""
    model = f" of model {compiled.model}" if compiled.model else ""
    detail = f"{_length(signals)} prompt tokens lie in the band from {band.from_tokens}{task}{model}"
    trail.settle(f"bands[{number}]", band.tier, Reason.LENGTH_BAND, detail)
    # What was found in a text was not said of the conversation: where it is a risk, the band itself lasts.
    risky = signals.detected and compiled.policy.risk is not Risk.LOW
    trail.note(band.tier if risky else _sparsest_to_come(compiled.policy, signals))


def densest_band(policy: Policy, signals: Signals) -> tuple[int, Band]:
    """The densest band that the token interval touches, with its number."""
    return min(_touched(policy, signals), key=lambda pair: pair[1].tier)


def _sparsest_to_come(policy: Policy, signals: Signals) -> Tier:
    """What a conversation may get as it grows: a short prompt's attention says nothing of its risk."""
    return max(band.tier for _, band in _reached(policy, signals))


def _touched(policy: Policy, signals: Signals) -> list[tuple[int, Band]]:
    return [item for item in _reached(policy, signals) if item[1].from_tokens <= signals.max_tokens]


def _reached(policy: Policy, signals: Signals) -> list[tuple[int, Band]]:
    """The bands of prompts as long, or longer, with their numbers."""
    task = signals.task if any(band.task == signals.task for band in policy.bands) else ""
    bands = [(number, band) for number, band in enumerate(policy.bands) if band.task == task]
    ends = [band.from_tokens for _, band in bands[1:]] + [None]
    return [item for item, end in zip(bands, ends, strict=True) if end is None or signals.min_tokens < end]


def _by_guards(trail: _Trail, policy: Policy) -> None:
    if policy.guards.max_tier is not None:
        what = f"guards.max_tier is {policy.guards.max_tier.word}"
        trail.cap("guards.max_tier", policy.guards.max_tier, Reason.GUARD, what)


def _by_rollout(trail: _Trail, signals: Signals, policy: Policy) -> None:
    rollout = policy.rollout
    if rollout is None:
        return
    what = f"the rollout is {rollout.state} at {rollout.percent} percent by {rollout.sticky_by.value}"
    if lets_through(policy, rollout, signals):
        trail.skip("rollout", f"{what}, which lets this request through", trail.verdict.tier)
        return
    if not sticky_key(rollout, signals):
        what += ", and the request names none"
    trail.cap("rollout", rollout.held_back, Reason.ROLLOUT_SPLIT, f"{what}; {rollout.held_back.word} until then")


def _applies(override: Override, signals: Signals, tier: Tier) -> bool:
    if override.expire_time is not None and override.expire_time <= signals.received_at:
        return False
    if override.scope is Scope.DOMAIN:
        return override.target in (signals.domain, signals.declared, *signals.also)
    targets = {Scope.GLOBAL: "", Scope.TENANT: signals.tenant, Scope.TIER: tier.word}
    return override.target == targets[override.scope]
