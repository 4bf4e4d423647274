"""An override that was set on a router, beside what the store has under its id; and what becomes of overrides."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace
from typing import NamedTuple

from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.contents import Asked, Word

# Clocks may differ by so much: what a store was told about when it was set here is no later word.
_LATER_SECONDS = 5.0
_CLOCK_TOLERANCE = 0.5


class Change(NamedTuple):
    """What became of an override, here or at another process of this machine.

    Attributes:
        id: of the override.
        override: as it is now; None once it was ended.
        revision: of the store, which has the change; 0 where it never had it.
        since: when an override was set that the store never had, or ended, seconds since the epoch by the store's
            clock; 0 where that is not known.
        token: of the override that was set here, which this is the change of, or which it takes the place of.
        read_at: revision of the store that was read when it was set; None where that is not told.
        read_event: the store's last event by then.
    """

    id: str
    override: Override | None
    revision: int = 0
    since: float = 0.0
    token: str = ""
    read_at: int | None = None
    read_event: str = ""


class Own(NamedTuple):
    """An override that was set here, or that the store had and lost.

    Attributes:
        override: as it was set.
        since: when, seconds since the epoch by the source's clock.
        read_at: revision of the source that was read by then.
        token: of its write to the store.
        lost_at: revision at which the store had it that lost it.
        event: of the store, at which it had it; None where it never did.
        read_event: the source's last event that was read by ``since``; empty where none is known.
        moved: seconds by which the source's clock has turned out to be later since.
        lengthened: of these, those that it lasts longer for.
    """

    override: Override
    since: float
    read_at: int = 0
    token: str = ""
    lost_at: int = 0
    event: str | None = None
    read_event: str = ""
    moved: float = 0.0
    lengthened: float = 0.0

    def asked(self) -> Asked:
        """What the store is asked about it."""
        if self.event is not None:
            return Asked(self.override.id, revision=self.lost_at, event=self.event, token=self.token)
        since = self.since + _LATER_SECONDS
        return Asked(self.override.id, since, self.read_at, token=self.token, read_event=self.read_event)

    def by_a_clock_later(self, seconds: float) -> Own:
        """The same by a clock that is so much later than was thought; one that moves to and fro adds nothing."""
        override, moved, more = self.override, self.moved + seconds, self.moved + seconds - self.lengthened
        if more > _CLOCK_TOLERANCE and override.expire_time is not None:
            # It was to last for a while from when it was set: no shorter, in doubt.
            override = replace(override, expire_time=override.expire_time + more)
        lengthened = self.lengthened if override is self.override else moved
        return self._replace(override=override, since=self.since + seconds, moved=moved, lengthened=lengthened)

    def is_held(self, word: Word) -> bool:
        """Whether the store has one that caps as much, and that was not known here when this one was set."""
        there = word.override
        if there is None or not caps(there, self.override):
            return False
        return word.is_new if self.event is None else there.revision > self.read_at

    def is_ended_by(self, change: Change) -> bool:
        """Whether an end was meant for this one: it was said after it."""
        return change.token == self.token or not 0.0 < change.since < self.since


def caps(one: Override, another: Override) -> bool:
    """Whether one caps whatever another does, as much and as long."""
    ends, wanted = (math.inf if each.expire_time is None else each.expire_time for each in (one, another))
    place = one.scope is Scope.GLOBAL or (one.scope, one.target) == (another.scope, another.target)
    return place and one.max_tier <= another.max_tier and ends >= wanted


def are_one(one: Own | None, another: Own | None) -> bool:
    """Whether both were set by the same word, by whatever clock it is reckoned; two that are not there are one."""
    return (one and one.token) == (another and another.token)


def new_token() -> str:
    """A token that no other write has."""
    return uuid.uuid4().hex[:16]
