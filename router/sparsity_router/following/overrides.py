"""The overrides that act on one router: those of the store, and those set here while it was away.

What a read of the store says is compared by revisions with what is known to have been written since: neither an old
read nor an old end has a say in what came after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.contents import Asked, PolicySource
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import NotFoundError, StoreError

from sparsity_router.following.own import Own, caps

log = logging.getLogger("sparsity.router.overrides")
KILL_SWITCH_ID = "signal"
_RETRY_SECONDS = 1.0
_ENDS_KEPT_SECONDS = 3600.0
# Clocks may differ by so much: what a store was told about when it was set here is no later word.
_LATER_SECONDS = 5.0


class Change(NamedTuple):
    """What became of an override, here or at another process of this machine.

    Attributes:
        id: of the override.
        override: as it is now; None once it was ended.
        revision: of the store, which has the change; 0 where it never had it.
        since: when an override was set that the store never had, seconds since the epoch by its clock.
    """

    id: str
    override: Override | None
    revision: int = 0
    since: float = 0.0


class Overrides:
    """Overrides by id.

    Args:
        publish: called at every change, before anything is waited for.
        now: seconds since the epoch, by the clock of the source of policies.
    """

    def __init__(self, publish: Callable[[], None], now: Callable[[], float] = time.time) -> None:
        self._publish = publish
        self._now = now
        self._read_at, self._read_time = 0, 0.0
        # By id, for as long as somebody writes it.
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stored: dict[str, Override] = {}
        # Set here, and not in the store yet.
        self._local: dict[str, Own] = {}
        # Of which the store is known, and the last read of it is too old to tell.
        self._ahead: dict[str, Change] = {}
        self._ended_at: dict[str, float] = {}
        self.tell: Callable[[Change], None] = lambda change: None
        """Told of every change that was made at this process."""

    def active(self) -> list[Override]:
        """What acts now; expiry is looked at by the decision."""
        there = dict(self._stored)
        for name, change in self._ahead.items():
            known = there.get(name)
            if known is None or known.revision < change.revision:
                there.pop(name, None)
                there |= {name: change.override} if change.override else {}
        return list((there | {name: own.override for name, own in self._owned()}).values())

    def ended_at(self, override_id: str) -> float:
        """When one of this id was last ended, on the monotonic clock; long ago where none was of late."""
        return self._ended_at.get(override_id, float("-inf"))

    def stored(self, overrides: Iterable[Override], revision: int, age: float = 0.0) -> None:
        """Takes up what the store held at a revision, so many seconds ago."""
        before, there = self.active(), {override.id: override for override in overrides}
        if lost := self._lost(there, revision):
            log.warning("the store has lost overrides %s, which act on and are written anew", ", ".join(lost))
        if revision < self._read_at:
            # Of ends that it has lost it must be told again, and its numbers begin anew.
            self._ahead = {name: change for name, change in self._ahead.items() if change.override is not None}
            self._local = {
                name: own._replace(read_at=min(own.read_at, revision)) for name, own in list(self._local.items())
            }
        self._stored = there
        self._ahead = {name: change for name, change in self._ahead.items() if change.revision > revision}
        # What it was told since it was last known to have them is later.
        self._local = {name: Own(override, self._read_time) for name, override in lost.items()} | self._local
        self._read_at, self._read_time = revision, self._now() - age
        self._changed(before, anyway=bool(lost))

    def _lost(self, there: Mapping[str, Override], revision: int) -> dict[str, Override]:
        """What the store had, and has no more after a failover to one that is behind: nobody ended it."""
        spared = there.keys() | {name for name, change in self._ahead.items() if change.override is None}
        known = self._stored | {name: each.override for name, each in self._ahead.items() if each.override is not None}
        # A store that is at the number of a write has it, or somebody else's write in its place.
        went_back = revision < self._read_at
        return {
            name: replace(each, revision=0)
            for name, each in known.items()
            if name not in spared and (each.revision == revision > 0 or (went_back and each.revision > revision))
        }

    def put(self, override: Override) -> None:
        """Makes an override act at once; it stays until it is ended here or handed over."""
        self._tell(Change(override.id, override, since=self._now()))

    async def restore(self, overrides: Mapping[Override, float], source: PolicySource) -> None:
        """Has those act on that were set here before a restart, but for what the source was told of them since.

        Args:
            overrides: and when each was set, seconds since the epoch.
            source: which may be away: then it is asked before they are written to it.
        """
        for override, since in overrides.items():
            log.warning("override %s was set here before a restart, and acts on", override.id)
            self.apply(Change(override.id, override, since=since))
            self._local[override.id] = Own(override, since)
        with contextlib.suppress(StoreError):
            await self._give_way(source)

    async def _give_way(self, source: PolicySource) -> None:
        """Leaves to the source what it was told of later than it was set here: somebody else set or ended it there.

        Clocks may differ: where the order is in doubt, the denser of two holds.

        Raises:
            StoreError: when the source cannot be asked.
        """
        for name, own in self._owned():
            if name == KILL_SWITCH_ID:
                continue
            word = await source.word_on(Asked(name, own.since + _LATER_SECONDS, own.read_at))
            if not (word.is_later or own.is_held(word.override)) or self._local.get(name) is not own:
                continue
            log.warning("override %s: the store was told of it later, and its word holds", name)
            self._tell(Change(name, None))
            if word.override is not None:
                # What cannot be read has no number.
                self._tell(Change(name, word.override, word.override.revision or self._read_at + 1))

    def hand_over(self, override: Override, revision: int) -> None:
        """Leaves an override to the store, which has it since ``revision``."""
        self._tell(Change(override.id, override, revision))

    def own(self, override_id: str) -> Override | None:
        """The one of this id that was set here and that the store does not have."""
        own = self._local.get(override_id)
        return own.override if own else None

    def end(self, override_id: str, revision: int | None = None) -> bool:
        """Ends an override at once; False when it was not active.

        Args:
            override_id: of the override.
            revision: at which the store ended it; None where the store, asked just now, has none.
        """
        known = any(override.id == override_id for override in self.active())
        # Of what the last read has, the store must have lost it since.
        self._tell(Change(override_id, None, self._read_at + 1 if revision is None else revision))
        return known

    def end_stored(self, override_id: str, revision: int) -> None:
        """Ends the one that the store had, which ended it at ``revision``; one that was set here meanwhile acts on."""
        before = self.active()
        self._note(Change(override_id, None, revision))
        self._changed(before)

    def apply(self, change: Change) -> None:
        """Takes up what happened, here or at another process of this machine."""
        before, name, override = self.active(), change.id, change.override
        if override is None:
            self._local.pop(name, None)
            ahead = self._ahead.get(name)
            change = change._replace(revision=max(change.revision, ahead.revision if ahead else 0))
        elif not change.revision:
            self._local[name] = Own(override, change.since or self._now(), self._read_at)
        elif (own := self._local.get(name)) is not None and own.override == override:
            del self._local[name]
        self._note(change)
        self._changed(before)

    def _note(self, change: Change) -> None:
        """Keeps what the store was told after the last read of it."""
        name, override, revision, _ = change
        ahead, there = self._ahead.get(name), self._stored.get(name)
        if not revision or (ahead is not None and ahead.revision > revision):
            return
        if revision <= self._read_at:
            # The store has gone back, or somebody changed it since: the denser holds till the next read tells.
            if override is None or (there is not None and (there == override or not caps(override, there))):
                return
            self._stored = {other: each for other, each in self._stored.items() if other != name}
        self._ahead[name] = Change(name, override and replace(override, revision=revision), revision)

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

    def kill(self) -> None:
        """The kill switch that needs no store: everything dense, until :meth:`unkill`."""
        log.warning("kill switch on: every request is served dense")
        self.put(Override(KILL_SWITCH_ID, Scope.GLOBAL, reason="kill switch by signal", actor="signal"))

    def unkill(self) -> None:
        """Ends :meth:`kill`."""
        log.warning("kill switch off")
        self.end(KILL_SWITCH_ID, 0)

    def publish(self) -> None:
        """Has what acts now acted upon anew."""
        self._publish()

    def local(self) -> dict[Override, float]:
        """Overrides set here that the store does not have, and when each was, seconds since the epoch."""
        return {own.override: own.since for _, own in self._owned()}

    def waiting(self) -> list[Override]:
        """Of these, the ones that it is to get; the one by signal is this process's own."""
        return [own.override for name, own in self._owned() if name != KILL_SWITCH_ID]

    def _owned(self) -> list[tuple[str, Own]]:
        """Those set here, by id; a list, because a signal may set or end one between any two instructions."""
        return list(self._local.items())

    async def write(self, store: PolicyStore, override: Override) -> bool:
        """Writes one that was set here to the store, and leaves it to it; False while it cannot be reached.

        Of one id one write goes on at a time, of what stands by then: none can come after a later one.
        """
        turn = self._writing.get(override.id) or asyncio.Lock()
        self._writing[override.id] = turn
        async with turn:
            own = self._local.get(override.id)
            return own is None or await self._write(store, own)

    async def _write(self, store: PolicyStore, own: Own) -> bool:
        override = own.override
        try:
            revision = await store.put_override(override, own.since)
        except StoreError:
            return False
        if any(active.id == override.id for active in self.active()):
            # Where it was set anew meanwhile that acts on, and is written next.
            self.hand_over(override, revision)
            return True
        log.warning("override %s was ended while it was written", override.id)
        with contextlib.suppress(StoreError, NotFoundError):
            await store.delete_override(override.id, revision)
        return True

    async def deliver(self, store: PolicyStore) -> None:
        """Writes what was set while the store was away once it is back, for as long as it runs."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._give_way(store)
            except StoreError:
                continue
            for override in self.waiting():
                if not await self.write(store, override):
                    break
                log.warning("override %s is in the store now", override.id)
