"""A request's decision, held against what policy says now: it may get denser before every attempt, never sparser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from sparsity_policies.decisions.decide import decide
from sparsity_policies.model import Decision, Signals, Tier

from sparsity_router.following.follower import PolicyFollower
from sparsity_router.prompts.classify import Classified


async def read_by_now(follower: PolicyFollower, classified: Classified) -> Classified:
    """A request as the policies of now read it; a long one is read beside the event loop."""
    while not classified.is_quick(snapshot := follower.snapshot):
        classified = await classified.read_by(snapshot)
    return classified


class Review:
    """Decides a request, and anew at every call that finds something changed.

    Args:
        follower: of the policies to decide from.
        classified: the request.
        session: the densest tier that its session is known to have got by now.
        tell: told of each decision that something changed for, the first one too.

    Attributes:
        signals: what the latest decision was made from.
        decision: the latest.
    """

    def __init__(
        self,
        follower: PolicyFollower,
        classified: Classified,
        session: Callable[[], Tier | None] = lambda: None,
        tell: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        self._follower = follower
        self._classified = classified
        self._session = session
        self._tell = tell
        self._reading = asyncio.Lock()
        # While these are the same, and its session got nothing denser, so is the decision.
        self._seen, self._was_stale = follower.snapshot, self._is_stale()
        self.signals = self._read()
        self.decision = decide(self.signals, self._seen)
        tell(self.decision)

    @property
    def is_quick(self) -> bool:
        """Whether the decision as of now takes no long reading."""
        return self._classified.is_quick(self._follower.snapshot)

    async def catch_up(self) -> None:
        """Does what reading there is beside the event loop; a call right after it takes no time.

        Of several answers that come at once the first has the text read, for all.
        """
        async with self._reading:
            self._classified = await read_by_now(self._follower, self._classified)

    def __call__(self) -> Decision:
        """The decision as of now."""
        snapshot, stale, session, held = self._follower.snapshot, self._is_stale(), self._session(), self.decision
        is_known = snapshot is self._seen and stale is self._was_stale
        if is_known and (session is None or session >= held.tier):
            return held
        self._seen, self._was_stale = snapshot, stale
        self.signals = self._read()
        # What policy has loosened meanwhile does not count; overrides of a tier must see the tier that is held.
        most = min(held.tier, self.signals.max_tier or held.tier)
        now = decide(replace(self.signals, max_tier=most), snapshot)
        self._tell(now)
        stays = replace(held, fallback=now.fallback) if now.tier is held.tier else now
        self.decision = replace(stays, dense_reasoning=held.dense_reasoning or now.dense_reasoning)
        return self.decision

    def _is_stale(self) -> bool:
        return self._follower.age > self._follower.snapshot.ttl

    def _read(self) -> Signals:
        """The signals as of now: a scan by new detection, staleness, and what its session got meanwhile."""
        self._classified = self._classified.by(self._seen)
        read = self._classified.signals
        tiers = [tier for tier in (read.session_tier, self._session()) if tier is not None]
        densest, age, now = min(tiers, default=None), self._follower.age, self._follower.now()
        return replace(read, session_tier=densest, policy_age=age, received_at=now)
