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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsity_policies.documents.document import Check
from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, open_policy, seal_override, seal_policy
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Override, StoredPolicy
from sparsity_policies.storage.contents import Contents, Cursor
from sparsity_rpc.errors import StoreError

log = logging.getLogger("sparsity.router.policies")
_TOUCH_SECONDS = 5.0
# The document begins with its revision, so that the whole need not be read to know it.
_REVISION, _HEAD = re.compile(r'\{"revision": (\d+),'), 64


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        contents: policies, and the overrides that acted.
        local: ids of the overrides that the store did not have: those that it is to get, and the switch by signal.
        age: seconds since it was last known to be current.
    """

    contents: Contents
    local: frozenset[str]
    age: float


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
        local: Mapping[Override, float] | None = None,
        age: float = 0.0,
        clock_offset: float = 0.0,
        overrides_at: int | None = None,
    ) -> None:
        """Writes what is decided from now, unless another process wrote a newer revision, known current more lately.

        Args:
            revision: of the policies.
            policies: all of them.
            overrides: those that act.
            local: of these, the ones that were set here and that the store does not have, and when each was set,
                seconds since the epoch.
            age: seconds since this was last known to be current.
            clock_offset: what the source's clock is ahead of this machine's, seconds.
            overrides_at: revision of the store that they were read at; that of the policies where it is no other.

        Raises:
            OSError: when it cannot be written.
        """
        current = time.time() - age
        document = {
            "revision": revision,
            "policies": {stored.policy.domain: seal_policy(stored) for stored in policies},
            "overrides": {override.id: seal_override(override) for override in overrides},
            "local": {override.id: since for override, since in (local or {}).items()},
            "clock_offset": clock_offset,
            "overrides_at": revision if overrides_at is None else overrides_at,
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
        """What was saved.

        Raises:
            StoreError: when there is no file, or it cannot be read.
        """
        try:
            age = max(time.time() - self._path.stat().st_mtime, 0.0)
            document = self._document()
            policies = [open_policy(envelope, domain, self._check) for domain, envelope in document["policies"].items()]
            overrides, rejected = open_overrides(document["overrides"])
            # No store has this head: the first look at one reads everything.
            cursor = Cursor(int(document["revision"]), "on disk", "0-0")
            local = frozenset(_local(document))
            # Routers from before wrote neither.
            offset, at = float(document.get("clock_offset", 0.0)), int(document.get("overrides_at", cursor.revision))
        except (OSError, *UNREADABLE) as error:
            raise self._unreadable(error) from error
        return Saved(Contents(cursor, policies, overrides, rejected, offset, overrides_at=at), local, age)

    def local(self) -> dict[Override, float]:
        """The overrides that the store did not have, and when each was set; none of a file that cannot be read."""
        try:
            document = self._document()
            told, local = document["overrides"], _local(document)
            found, _ = open_overrides({name: told[name] for name in local if name in told})
            return {override: local[override.id] for override in found}
        except FileNotFoundError:
            return {}
        except (OSError, *UNREADABLE) as error:
            log.error("%s; what was set here without the store is lost", self._unreadable(error))
            return {}

    def handed_over(self) -> tuple[list[Override], int, float]:
        """The overrides that the store had, its revision, and how long ago that was, seconds; none of a file that
        cannot be read."""
        try:
            age = max(time.time() - self._path.stat().st_mtime, 0.0)
            document = self._document()
            local, at = _local(document), int(document.get("overrides_at", document["revision"]))
            found, _ = open_overrides({name: told for name, told in document["overrides"].items() if name not in local})
            return [override for override in found if override.revision], at, age
        except (OSError, *UNREADABLE):
            # Told by whoever reads what was set here.
            return [], 0, 0.0

    def _document(self) -> Any:
        return json.loads(self._path.read_text(encoding="utf-8"))

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(f"--snapshot-file: {self._path}: {type(error).__name__}: {error}")


def _local(document: Any) -> Mapping[str, float]:
    """When each override was set that the store did not have; routers from before wrote ids alone, as `waiting` too."""
    found = document.get("local", document.get("waiting", ()))
    if isinstance(found, dict):
        return {str(name): float(since) for name, since in found.items()}
    # As late as can be: no store was told of them later.
    return dict.fromkeys(map(str, found), math.inf)
