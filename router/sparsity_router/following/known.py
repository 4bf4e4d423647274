"""What a router knows of the overrides in the store: by its last read, and by what was written since.

An override that a read lacks, or has an older one of, may have been ended, or lost by a store that was emptied or
failed over: revisions alone do not tell. The store is asked what it was told of it last; what it does not know stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from sparsity_policies.model import Override
from sparsity_policies.storage.contents import Asked, Word

from sparsity_router.following.own import Change, caps


class Read(NamedTuple):
    """What the store held.

    Attributes:
        overrides: all of them.
        revision: at which it held them.
        event: its last one by then; empty where that is not known.
        began: when it was asked, on the monotonic clock; never where that was long ago.
    """

    overrides: Iterable[Override]
    revision: int
    event: str = ""
    began: float = float("-inf")


class Seen(NamedTuple):
    """An override in the store, or its end.

    Attributes:
        override: None once it was ended.
        revision: of its write.
        event: of the store, by which it was there; empty where only the revision tells.
        noted: when this was heard, on the monotonic clock.
    """

    override: Override | None
    revision: int
    event: str
    noted: float

    def known_at(self, now: float) -> float:
        """When the store is known to have had it, seconds since the epoch by the clock that says ``now``."""
        return int(self.event.partition("-")[0]) / 1000 if self.event else now - (time.monotonic() - self.noted)


class Known:
    """Overrides of the store by id."""

    def __init__(self) -> None:
        self.read_at = 0
        """Revision of the last read."""
        self.read_event = ""
        """The store's last event by then; empty where that is not known."""
        self._stored: dict[str, Seen] = {}
        # Of which the store is known, and the last read of it is too old to tell.
        self._ahead: dict[str, Seen] = {}

    def acting(self) -> dict[str, Override]:
        """What acts by all that is known."""
        return {name: seen.override for name, seen in self._now().items() if seen.override is not None}

    def _now(self) -> dict[str, Seen]:
        there = dict(self._stored)
        for name, seen in self._ahead.items():
            known = there.get(name)
            if known is None or known.revision < seen.revision:
                there[name] = seen
        return there

    def doubtful(self, read: Read, now: float) -> Iterator[Asked]:
        """Of what the store is to be asked, because a read lacks it or has an older one that caps less.

        Args:
            read: the read.
            now: seconds since the epoch by the store's clock; what ran out by then needs no word.
        """
        there = {override.id: override for override in read.overrides}
        for name, seen in self._now().items():
            override, other = seen.override, there.get(name)
            if override is None or (override.expire_time is not None and override.expire_time <= now):
                continue
            # What could not be read is not written back. A later number tells nothing: an emptied store numbers anew.
            if not seen.revision or (other is not None and caps(other, override)):
                continue
            # It was asked before it had the write.
            if seen.revision > read.revision and seen.noted >= read.began and name in self._ahead:
                continue
            yield Asked(name, revision=seen.revision, event=seen.event)

    def adopt(self, read: Read, words: Mapping[Asked, Word | None], now: float) -> dict[str, Seen]:
        """Takes a read up, and gives what the store has lost.

        Args:
            read: the read.
            words: of the store, on what was doubtful; without one an override stays.
            now: as of :meth:`doubtful`.
        """
        noted = time.monotonic()
        there = {each.id: Seen(each, each.revision, read.event, noted) for each in read.overrides}
        known, lost, decided = self._now(), dict[str, Seen](), set[str]()
        for name, before in known.items():
            # It was there from then on: what was said since the last read is no older.
            if before.event and name in there and there[name].override == before.override:
                there[name] = before
        for asked in self.doubtful(read, now):
            name, seen, word = asked.id, known[asked.id], words.get(asked)
            decided.add(name)
            if word is None:
                there[name] = seen
            elif (told := word.override) is not None and (word.is_later or _holds(told, seen)):
                there[name] = Seen(told, told.revision, read.event, noted)
            elif not word.is_later:
                lost[name] = seen
                there.pop(name, None)
        went_back = read.revision < self.read_at
        self._ahead = {
            name: seen
            for name, seen in self._ahead.items()
            if seen.revision > read.revision
            and name not in decided
            # Of ends that it has lost a store must be told again.
            and not (went_back and seen.override is None)
        }
        self._stored, self.read_at, self.read_event = there, read.revision, read.event
        return lost

    def note(self, change: Change) -> None:
        """Keeps what the store was told after the last read of it."""
        name, override, revision, *_ = change
        ahead, there = self._ahead.get(name), self._stored.get(name)
        if not revision or (ahead is not None and ahead.revision > revision):
            return
        if revision <= self.read_at:
            # The store has gone back, or somebody changed it since: the denser holds till the next read tells.
            known = there.override if there is not None else None
            if override is None or (known is not None and (known == override or not caps(override, known))):
                return
            self._stored = {other: each for other, each in self._stored.items() if other != name}
        numbered = override and replace(override, revision=revision)
        self._ahead[name] = Seen(numbered, revision, "", time.monotonic())

    def end(self, override_id: str, revision: int) -> None:
        """Notes an end, which whatever was known of until now is older than."""
        ahead = self._ahead.get(override_id)
        self.note(Change(override_id, None, max(revision, ahead.revision if ahead else 0)))


def _holds(told: Override, seen: Seen) -> bool:
    """Whether the store has the very override, or one that caps as much."""
    return seen.override is not None and (told.revision == seen.revision or caps(told, seen.override))
