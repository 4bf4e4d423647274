"""A request's decision, held against what policy says now: it may get denser before every attempt, never sparser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sparsity_policies.decide import decide
from sparsity_policies.model import Decision, Signals, Tier
from sparsity_policies.snapshot import Snapshot

from sparsity_router.classify import Classified
from sparsity_router.policies import PolicyFollower


class _Seen(NamedTuple):
    """What a decision hangs on beside its request; while it is the same, so is the decision."""

    snapshot: Snapshot
    stale: bool
    session: Tier | None


class Review:
    """Decides a request, and anew at every call that finds something changed.

    Args:
        policies: what to decide from.
        classified: the request.
        session: the densest tier that its session is known to have got by now.

    Attributes:
        signals: what the latest decision was made from.
        decision: the latest.
    """

    def __init__(
        self, policies: PolicyFollower, classified: Classified, session: Callable[[], Tier | None] = lambda: None
    ) -> None:
        self._policies = policies
        self._classified = classified
        self._session = session
        self._seen = self._look()
        self.signals = self._read()
        self.decision = decide(self.signals, self._seen.snapshot)

    def __call__(self) -> Decision:
        """The decision as of now."""
        seen, before = self._look(), self._seen
        if seen.snapshot is before.snapshot and seen[1:] == before[1:]:
            return self.decision
        self._seen, held = seen, self.decision
        self.signals = self._read()
        # What policy has loosened meanwhile does not count; overrides of a tier must see the tier that is held.
        most = min(held.tier, self.signals.max_tier or held.tier)
        now = decide(replace(self.signals, max_tier=most), seen.snapshot)
        stays = replace(held, fallback=now.fallback) if now.tier is held.tier else now
        self.decision = replace(stays, dense_reasoning=held.dense_reasoning or now.dense_reasoning)
        return self.decision

    def _look(self) -> _Seen:
        snapshot = self._policies.snapshot
        return _Seen(snapshot, self._policies.age > snapshot.ttl, self._session())

    def _read(self) -> Signals:
        """The signals as of now: a scan by new detection, staleness, and what its session got meanwhile."""
        read, session = self._classified.under(self._seen.snapshot), self._seen.session
        tiers = [tier for tier in (read.session_tier, session) if tier is not None]
        densest, age, now = min(tiers, default=None), self._policies.age, self._policies.now()
        return replace(read, session_tier=densest, policy_age=age, received_at=now)
