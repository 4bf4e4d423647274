"""The overrides that act on one router: those of the store, and those set here that it does not have.

What a read of the store says is compared by revisions with what is known to have been written since: neither an old
read nor an old end has a say in what came after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.contents import Asked, Word

from sparsity_router.following.known import Known, Read
from sparsity_router.following.own import Change, Own, new_token

log = logging.getLogger("sparsity.router.overrides")
KILL_SWITCH_ID = "signal"
_ENDS_KEPT_SECONDS = 3600.0
_LATER_SECONDS = 0.001
_NO_WORDS: Mapping[Asked, Word | None] = MappingProxyType({})


class ActingOverrides:
    """Overrides by id.

    Args:
        publish: called at every change, before anything is waited for.
        now: seconds since the epoch, by the clock of the source of policies.
    """

    def __init__(self, publish: Callable[[], None], now: Callable[[], float] = time.time) -> None:
        self._publish = publish
        self._now = now
        self._known = Known()
        # Set here, and not in the store yet. Changed in place: a signal may set one between any two instructions.
        self._local: dict[str, Own] = {}
        self._ended_at: dict[str, float] = {}
        self.tell: Callable[[Change], None] = lambda change: None
        """Told of every change that was made at this process."""

    def active(self) -> list[Override]:
        """What acts now; expiry is looked at by the decision."""
        return list((self._known.acting() | {own.override.id: own.override for own in self.local()}).values())

    def ended_at(self, override_id: str) -> float:
        """When one of this id was last ended, on the monotonic clock; long ago where none was of late."""
        return self._ended_at.get(override_id, float("-inf"))

    def stored(self, read: Read, words: Mapping[Asked, Word | None] = _NO_WORDS) -> None:
        """Takes up what the store held, with its word on what is doubtful; without one an override acts on."""
        before, went_back, now = self.active(), read.revision < self._known.read_at, self._now()
        lost = self._known.adopt(read, words, now)
        if lost:
            log.warning("the store has lost overrides %s, which act on and are written anew", ", ".join(lost))
        if went_back:
            # Its numbers begin anew: none that it has given by now was known before.
            for own in self._waiting():
                self._local[own.override.id] = own._replace(read_at=0)
        for name, seen in lost.items():
            if seen.override is not None:
                # No later than the store is known to have had it: what was said since is no older word.
                since = min(now, seen.known_at(now))
                own = Own(replace(seen.override, revision=0), since, 0, new_token(), seen.revision, seen.event)
                self._local.setdefault(name, own)
        self._changed(before, anyway=bool(lost))

    def put(self, override: Override) -> None:
        """Makes an override act at once; it stays until it is ended here or handed over."""
        own = self._local.get(override.id)
        # Later than whatever was said before, though another process's clock may be ahead.
        since = max(self._now(), own.since + _LATER_SECONDS if own else 0.0)
        self._tell(Change(override.id, override, 0, since, new_token(), self._known.read_at, self._known.read_event))

    def restore(self, owns: Iterable[Own]) -> None:
        """Has those act on that were set here before a restart."""
        for own in owns:
            override = own.override
            log.warning("override %s was set here before a restart, and acts on", override.id)
            # As late as can be is now.
            since = min(own.since, self._now())
            self.apply(Change(override.id, override, 0, since, own.token, own.read_at, own.read_event))
            if (there := self._local[override.id]).token == own.token:
                self._local[override.id] = own._replace(since=there.since)

    def hand_over(self, override: Override, revision: int, token: str = "") -> None:
        """Leaves an override to the store, which has it since ``revision``; ``token`` is of the one that was set."""
        self._tell(Change(override.id, override, revision, token=token))

    def own(self, override_id: str) -> Own | None:
        """The one of this id that was set here and that the store does not have."""
        return self._local.get(override_id)

    def is_in_store(self, override_id: str) -> bool:
        """Whether the store has one of this id, by all that is known, that has not run out."""
        there = self._known.acting().get(override_id)
        return there is not None and (there.expire_time is None or there.expire_time > self._now())

    def end(self, override_id: str, revision: int | None = None) -> bool:
        """Ends an override at once; False when it was not active.

        Args:
            override_id: of the override.
            revision: at which the store ended it; None where the store, asked just now, has none.
        """
        known, own = any(override.id == override_id for override in self.active()), self._local.get(override_id)
        # Of what the last read has, the store must have lost it since.
        at = self._known.read_at + 1 if revision is None else revision
        self._tell(Change(override_id, None, at, self._now(), own.token if own else ""))
        return known

    def end_stored(self, override_id: str, revision: int) -> None:
        """Ends the one that the store had, which ended it at ``revision``; one that was set here meanwhile acts on."""
        before = self.active()
        self._known.note(Change(override_id, None, revision))
        self._changed(before)

    def apply(self, change: Change) -> None:
        """Takes up what happened, here or at another process of this machine."""
        before, name, override = self.active(), change.id, change.override
        own = self._local.get(name)
        if override is None:
            if own is not None and own.is_ended_by(change):
                self._local.pop(name, None)
                self._ended(own)
            self._known.end(name, change.revision)
        elif not change.revision:
            since = change.since or self._now()
            if own is None or own.since <= since:
                read_at, event = change.read_at, change.read_event
                if read_at is None:
                    read_at, event = self._known.read_at, self._known.read_event
                self._local[name] = Own(override, since, read_at, change.token or new_token(), read_event=event)
        else:
            if own is not None and (own.token == change.token or (not change.token and own.override == override)):
                self._local.pop(name, None)
            self._known.note(change)
        self._changed(before)

    def _ended(self, own: Own) -> None:
        """Notes that one which was set here was ended."""

    def _tell(self, change: Change) -> None:
        self.tell(change)
        self.apply(change)

    def _changed(self, before: list[Override], *, anyway: bool = False) -> None:
        after, now = self.active(), time.monotonic()
        if after == before and not anyway:
            return
        gone = {override.id for override in before} - {override.id for override in after}
        kept = {name: at for name, at in self._ended_at.items() if now - at < _ENDS_KEPT_SECONDS}
        self._ended_at = kept | dict.fromkeys(gone, now)
        self._publish()

    def clock_moved(self, by: float) -> None:
        """Reckons what was set here by the source's clock, which is so many seconds later than it was thought to be."""
        before = self.active()
        for own in self._waiting():
            self._local[own.override.id] = own.by_a_clock_later(by)
        self._changed(before)

    def kill(self) -> None:
        """The kill switch that needs no store: everything dense, until :meth:`unkill`."""
        # First of all: a log that is being written to when the signal comes may refuse what comes between.
        self.put(Override(KILL_SWITCH_ID, Scope.GLOBAL, reason="kill switch by signal", actor="signal"))
        log.warning("kill switch on: every request is served dense")

    def unkill(self) -> None:
        """Ends :meth:`kill`."""
        self.end(KILL_SWITCH_ID, 0)
        log.warning("kill switch off")

    def publish(self) -> None:
        """Has what acts now acted upon anew."""
        self._publish()

    def local(self) -> list[Own]:
        """Those set here that the store does not have; a list, because a signal may set or end one at any time."""
        return list(self._local.values())

    def waiting(self) -> list[Override]:
        """Of these, the ones that the store is to get; the one by signal is this process's own."""
        return [own.override for own in self._waiting()]

    def _waiting(self) -> list[Own]:
        return [own for own in self.local() if own.override.id != KILL_SWITCH_ID]
