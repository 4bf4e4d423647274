"""The overrides of one router beside its store: what it lacks is asked about, what was set here is written to it, and
what was ended here before it was known to be there is ended there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakValueDictionary

from sparsity_policies.model import Override
from sparsity_policies.storage.contents import Asked, PolicySource, Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConflictError, NotFoundError, StoreError

from sparsity_router.following.acting import ActingOverrides
from sparsity_router.following.known import Read
from sparsity_router.following.own import Change, Own, are_one

log = logging.getLogger("sparsity.router.overrides")
_RETRY_SECONDS = 1.0
# A write that was given up may reach a store that is slow for so long after it is heard again.
_LATE_SECONDS = 60.0


class _Owed(NamedTuple):
    """An end that the store may have to be told of; until when, on the monotonic clock, is known once it was asked."""

    own: Own
    until: float | None = None


class Overrides(ActingOverrides):
    """The overrides of one router, and how they and the store's become one."""

    def __init__(self, publish: Callable[[], None], now: Callable[[], float] = time.time) -> None:
        super().__init__(publish, now)
        # By id, for as long as somebody writes it.
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # By token: writes of which nobody knows whether they were carried out, and those of them that were ended.
        self._tried: set[str] = set()
        self._owed: dict[str, _Owed] = {}

    async def take_up(self, read: Read, source: PolicySource) -> None:
        """Takes up what the store held; of what it has ended or lost since, its word tells, or else it acts on."""
        words: dict[Asked, Word | None] = {}
        self.stored(read)
        # What is known changes while it is asked.
        while unasked := [asked for asked in self._known.doubtful(read, self._now()) if asked not in words]:
            try:
                for asked in unasked:
                    words[asked] = await source.word_on(asked)
            except StoreError:
                words = dict.fromkeys(unasked) | words
        if words:
            self.stored(read, words)

    async def give_way(self, source: PolicySource) -> None:
        """Leaves to the source what it was told of later than it was set here: somebody else set or ended it there.

        Clocks may differ: where the order is in doubt, the denser of two holds.

        Raises:
            StoreError: when the source cannot be asked.
        """
        for own in self._waiting():
            name = own.override.id
            word = await source.word_on(own.asked())
            if not (word.is_same or word.is_later or own.is_held(word)) or not are_one(self.own(name), own):
                continue
            if not word.is_same:
                log.warning("override %s: the store was told of it later, and its word holds", name)
            # What cannot be read has no number.
            there = word.override
            revision = 0 if there is None else there.revision or self._known.read_at + 1
            self._tell(Change(name, there, revision, own.since, own.token))

    def _ended(self, own: Own) -> None:
        if own.token in self._tried:
            self._owed[own.token] = _Owed(own)

    async def write(self, store: PolicyStore, override: Override) -> bool:
        """Writes one that was set here to the store, and leaves it to it; False while it cannot be reached.

        Of one id one write goes on at a time, of what stands by then: none can come after a later one.
        """
        turn = self._writing.get(override.id) or asyncio.Lock()
        self._writing[override.id] = turn
        async with turn:
            own = self.own(override.id)
            return own is None or await self._write(store, own)

    async def _write(self, store: PolicyStore, own: Own) -> bool:
        override = own.override
        self._tried.add(own.token)
        try:
            revision = await store.put_override(override, own.since, own.token, own.read_at)
        except StoreError:
            return False
        except ConflictError:
            self._tried.discard(own.token)
            with contextlib.suppress(StoreError):
                await self.give_way(store)
            return not are_one(self.own(override.id), own)
        self._tried.discard(own.token)
        if any(active.id == override.id for active in self.active()):
            # Where it was set anew meanwhile that acts on, and is written next.
            self._owed.pop(own.token, None)
            self.hand_over(override, revision, own.token)
            return True
        log.warning("override %s was ended while it was written", override.id)
        self._owed[own.token] = _Owed(own)
        with contextlib.suppress(StoreError):
            await self._end_there(store, own, revision)
        return True

    async def _end_there(self, store: PolicyStore, own: Own, revision: int) -> None:
        """Ends in the store what it was told at ``revision``, unless somebody changed it since."""
        with contextlib.suppress(NotFoundError):
            await store.delete_override(own.override.id, revision)
        self._owed.pop(own.token, None)

    async def _settle(self, store: PolicyStore) -> None:
        """Ends what was ended here while nobody knew whether the store has it.

        Raises:
            StoreError: when the store cannot be asked.
        """
        for owed in list(self._owed.values()):
            word = await store.word_on(owed.own.asked())
            if word.is_same and word.override is not None:
                await self._end_there(store, owed.own, word.override.revision)
            elif owed.until is None:
                self._owed[owed.own.token] = owed._replace(until=time.monotonic() + _LATE_SECONDS)
            elif time.monotonic() > owed.until:
                self._owed.pop(owed.own.token, None)
                self._tried.discard(owed.own.token)

    async def deliver(self, store: PolicyStore) -> None:
        """Writes what was set while the store was away once it is back, for as long as it runs."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            with contextlib.suppress(StoreError):
                await self.deliver_once(store)

    async def deliver_once(self, store: PolicyStore) -> None:
        """Has the store get what it is to have, as far as it can be reached.

        Raises:
            StoreError: when it cannot.
        """
        await self.give_way(store)
        await self._settle(store)
        for override in self.waiting():
            if not await self.write(store, override):
                break
            log.warning("override %s is in the store now", override.id)
