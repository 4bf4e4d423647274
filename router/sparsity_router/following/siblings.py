"""Overrides among the router processes that share a port: what is set at one acts at all, store or not.

A folder holds one small file an event, named by time and process. Who starts late reads them all, so that a process
that was restarted during an outage of the store knows the kill switch too. What says nothing any more is removed: all
events of an override but its last, and that too an hour after it ended or the store had it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, seal_override

from sparsity_router.following.overrides import Overrides
from sparsity_router.following.own import Change

log = logging.getLogger("sparsity.router.siblings")
_POLL_SECONDS = 0.05
# Who runs has read it within a poll, and who starts later asks the store, or reads what its siblings saved.
_KEPT_SECONDS = 3600.0
_NAME = re.compile(r"\d+-\d+-\d+\.json")


class _Event(NamedTuple):
    """What a file tells: of which override, and until when nobody else would say so, seconds since the epoch."""

    about: str
    until: float = 0.0

    @classmethod
    def of(cls, change: Change) -> _Event:
        """The event of a change."""
        if change.override is None or change.revision:
            return cls(change.id)
        return cls(change.id, change.override.expire_time or float("inf"))


class Siblings:
    """Passes on what happens to one process's overrides, and takes up what happens to the others'."""

    def __init__(self, folder: Path, overrides: Overrides) -> None:
        self._folder = folder
        self._overrides = overrides
        # What was read, by file.
        self._read: dict[str, _Event] = {}
        # What could not be written yet, by file.
        self._untold: dict[str, str] = {}
        self._count = self._latest = 0
        self._deaf = False
        self._unread = "", ""
        overrides.tell = self._tell

    def _tell(self, change: Change) -> None:
        sealed = seal_override(change.override) if change.override else None
        about = {
            "since": change.since,
            "token": change.token,
            "read_at": change.read_at,
            "read_event": change.read_event,
        }
        content = {"id": change.id, "override": sealed, "revision": change.revision, **about}
        self._count += 1
        # After all that was heard, also where the clock was set back meanwhile.
        self._latest = max(time.time_ns(), self._latest + 1)
        name = f"{self._latest:020d}-{os.getpid()}-{self._count}.json"
        self._read[name] = _Event.of(change)
        self._untold[name] = json.dumps(content)
        try:
            self._write(name)
        except OSError as error:
            log.error("the other router processes of this machine are not told of an override yet: %s", error)

    def _write(self, name: str) -> None:
        scratch = self._folder / f"{name}.part"
        scratch.write_text(self._untold[name], encoding="utf-8")
        os.replace(scratch, self._folder / name)
        del self._untold[name]

    def _tell_again(self) -> None:
        """Writes what could not be written before."""
        with contextlib.suppress(OSError):
            for name in list(self._untold):
                self._write(name)

    async def run(self) -> None:
        """Takes up what the others tell, for as long as it runs."""
        while True:
            self.look()
            await asyncio.sleep(_POLL_SECONDS)

    def look(self) -> None:
        """Takes up what is new, and removes what is past."""
        # Before the folder is listed: a signal may tell of something at any time.
        known = list(self._read)
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder) if _NAME.fullmatch(entry.name))
        except OSError as error:
            # A temporary folder may be cleared away; what acts here goes on acting.
            if not self._deaf:
                log.error("what other router processes of this machine tell of overrides is not heard: %s", error)
            self._deaf = True
            return
        self._deaf = False
        self._latest = max(self._latest, *(int(name.partition("-")[0]) for name in names), 0)
        for name in names:
            if name not in self._read:
                self._take(name)
        for name in set(known).difference(names, self._untold):
            del self._read[name]
        self._tell_again()
        self._prune([name for name in names if name in self._read])

    def _take(self, name: str) -> None:
        event = _Event(name)
        try:
            told = json.loads((self._folder / name).read_text(encoding="utf-8"))
            event = _Event(str(told["id"]))
            sealed, revision = told["override"], int(told["revision"])
            found, broken = open_overrides({event.about: sealed} if sealed else {})
            since, token = float(told.get("since", 0.0)), str(told.get("token", ""))
            read_at = told.get("read_at")
            read_at = None if read_at is None else int(read_at)
            about = (event.about, found[0] if found else None, revision, since, token)
            change = Change(*about, read_at, str(told.get("read_event", "")))
            self._overrides.apply(change)
            event = _Event.of(change)
            if broken:
                raise ValueError(broken)
        except FileNotFoundError:
            # Removed by another process, because something later says more.
            return
        except OSError as error:
            # It is tried again: what it tells may be a kill switch.
            if self._unread != (name, str(error)):
                log.error("%s tells of an override and cannot be read yet: %s", name, error)
            self._unread = name, str(error)
            return
        except UNREADABLE as error:
            log.error("%s tells of an override that cannot be read: %s", event.about, error)
        self._read[name] = event

    def _prune(self, names: list[str]) -> None:
        last = {self._read[name].about: name for name in names}
        long_ago = time.time() - _KEPT_SECONDS
        for name in names:
            event = self._read[name]
            if last[event.about] != name or (event.until < long_ago and _time_of(name) < long_ago):
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)


def _time_of(name: str) -> float:
    """When the event of a file was, seconds since the epoch."""
    return int(name.partition("-")[0]) / 1e9
