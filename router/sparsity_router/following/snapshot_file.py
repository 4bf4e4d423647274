"""The last policies on disk, so that a router can start while the store is away.

The file's modification time is when its contents were last known to be current: the time to live of policies goes on
across a restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparsity_policies.documents.document import Check
from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, open_policy, seal_override, seal_policy
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Override, StoredPolicy
from sparsity_policies.storage.contents import Contents, Cursor
from sparsity_rpc.errors import StoreError

from sparsity_router.following.own import Own, new_token

log = logging.getLogger("sparsity.router.policies")
_TOUCH_SECONDS = 5.0
# The document begins with its revision, so that the whole need not be read to know it.
_REVISION, _HEAD = re.compile(r'\{"revision": (\d+),'), 64


class Saved(NamedTuple):
    """What a file holds, but for the policies.

    Attributes:
        own: the overrides that were set here and that the store did not have.
        handed_over: those that acted and that the store had.
        rejected: what could not be read of both.
        overrides_at: revision of the store that they were read at.
        overrides_event: the store's last event by then.
        clock_offset: what the source's clock was ahead of this machine's, seconds.
        is_clock_known: whether the source was ever heard by then.
        age: seconds since all this was last known to be current.
        document: all of it, as it was written.
    """

    own: list[Own]
    handed_over: list[Override]
    rejected: dict[str, str]
    overrides_at: int
    overrides_event: str
    clock_offset: float
    is_clock_known: bool
    age: float
    document: Any

    @property
    def local(self) -> set[str]:
        """Ids of the overrides that the store did not have: those that it is to get, and the switch by signal."""
        return {own.override.id for own in self.own}

    def contents(self, check: Check) -> Contents:
        """Policies, and the overrides that the store had.

        Raises:
            one of UNREADABLE: when they cannot be read.
        """
        document = self.document
        policies = [open_policy(envelope, domain, check) for domain, envelope in document["policies"].items()]
        # No store has this head: the first look at one reads everything.
        cursor = Cursor(int(document["revision"]), "on disk", "0-0")
        about = (self.clock_offset, (), self.overrides_at, self.overrides_event)
        return Contents(cursor, policies, self.handed_over, self.rejected, *about)


class SnapshotFile:
    """One file, replaced in one step; ``check`` finds the mistakes of what is read."""

    def __init__(self, path: Path, check: Check = check_policy) -> None:
        self._path = path
        self._check = check
        self._touched = 0.0

    def save(
        self,
        revision: int,
        policies: Iterable[StoredPolicy],
        overrides: Iterable[Override],
        own: Iterable[Own] = (),
        age: float = 0.0,
        clock_offset: float = 0.0,
        overrides_at: int | None = None,
        overrides_event: str = "",
    ) -> None:
        """Writes what is decided from now, unless another process wrote a newer revision, known current more lately.

        Args:
            revision: of the policies.
            policies: all of them.
            overrides: those that act.
            own: of these, the ones that were set here and that the store does not have.
            age: seconds since this was last known to be current.
            clock_offset: what the source's clock is ahead of this machine's, seconds.
            overrides_at: revision of the store that they were read at; that of the policies where it is no other.
            overrides_event: the store's last event by then.

        Raises:
            OSError: when it cannot be written.
        """
        current, own = time.time() - age, list(own)
        document = {
            "revision": revision,
            "policies": {stored.policy.domain: seal_policy(stored) for stored in policies},
            "overrides": {override.id: seal_override(override) for override in overrides},
            "local": {each.override.id: each.since for each in own},
            "own": {
                each.override.id: [each.read_at, each.token, each.lost_at, each.event, each.read_event] for each in own
            },
            "clock_offset": clock_offset,
            "overrides_at": revision if overrides_at is None else overrides_at,
            "overrides_event": overrides_event,
        }
        # Of containers that share a folder, each may be process 1.
        scratch = self._path.with_name(f"{self._path.name}.{socket.gethostname()}.{os.getpid()}")
        scratch.write_text(json.dumps(document), encoding="utf-8")
        os.utime(scratch, (current, current))
        with self._locked():
            if self._is_newer(revision, current):
                scratch.unlink()
            else:
                os.replace(scratch, self._path)
        self._touched = time.monotonic()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps out the other processes that write the file."""
        # A file of its own, open for writing: NFS locks no other.
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _is_newer(self, revision: int, current: float) -> bool:
        """Whether the file has a later revision than this, and was known to be current since."""
        try:
            with self._path.open(encoding="utf-8") as file:
                begins = _REVISION.match(file.read(_HEAD))
            return begins is not None and int(begins[1]) > revision and self._path.stat().st_mtime > current
        except (OSError, UnicodeDecodeError):
            return False

    def confirm(self) -> None:
        """Notes that the file is current, every few seconds."""
        if time.monotonic() - self._touched > _TOUCH_SECONDS and self._path.exists():
            os.utime(self._path)
            self._touched = time.monotonic()

    def load(self) -> Saved:
        """What was saved, but for the policies.

        Raises:
            StoreError: when there is no file, or it cannot be read.
        """
        try:
            age = max(time.time() - self._path.stat().st_mtime, 0.0)
            document = json.loads(self._path.read_text(encoding="utf-8"))
            # Routers from before wrote neither.
            offset = float(document.get("clock_offset", 0.0))
            at = int(document.get("overrides_at", document["revision"]))
            event = document.get("overrides_event")
            found, rejected = open_overrides(document["overrides"])
            own = {each.override.id: each for each in _own(document, found)}
        except (OSError, *UNREADABLE) as error:
            raise self._unreadable(error) from error
        is_clock_known = event != ""
        if event is None:
            # By then it was so.
            event = f"{int(max(time.time() - age + offset, 0.0) * 1000)}-0"
        handed_over = [override for override in found if override.id not in own]
        return Saved(list(own.values()), handed_over, rejected, at, str(event), offset, is_clock_known, age, document)

    def contents(self, saved: Saved | None = None) -> Contents:
        """The policies in what was saved, read before or now, and the overrides that the store had.

        Raises:
            StoreError: when they cannot be read.
        """
        try:
            return (saved or self.load()).contents(self._check)
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(f"--snapshot-file: {self._path}: {type(error).__name__}: {error}")


def _own(document: Any, overrides: Iterable[Override]) -> Iterator[Own]:
    """The overrides that the store did not have; routers from before wrote ids alone, as `waiting` too."""
    local, about = document.get("local", document.get("waiting", ())), document.get("own", {})
    for override in overrides:
        if override.id in local:
            # As late as can be: no store was told of them later.
            since = float(local[override.id]) if isinstance(local, dict) else math.inf
            read_at, token, lost_at, event, *more = about.get(override.id, (0, new_token(), 0, None))
            read_event = str(more[0]) if more else ""
            yield Own(override, since, int(read_at), str(token), int(lost_at), event, read_event)
