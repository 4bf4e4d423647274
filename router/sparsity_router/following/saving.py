"""Keeps what a router decides from on the disk: at every change, and once more at its end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import NamedTuple

from sparsity_policies.model import Override, StoredPolicy
from sparsity_policies.threads import BUILDS

from sparsity_router.following.own import Own
from sparsity_router.following.snapshot_file import SnapshotFile

log = logging.getLogger("sparsity.router.policies")
_RETRY_SECONDS = 0.5
# For the last write, of a process that was told to end.
_LAST_SECONDS = 2.0


class Kept(NamedTuple):
    """What is written, counted by ``version`` and last ``confirmed`` to be current, on the monotonic clock; the rest as
    :meth:`SnapshotFile.save` has it."""

    version: int
    revision: int
    policies: list[StoredPolicy]
    overrides: list[Override]
    own: list[Own]
    confirmed: float
    clock_offset: float
    overrides_at: int
    overrides_event: str


class Saving:
    """Writes ``kept`` to ``disk``, where there is one."""

    def __init__(self, disk: SnapshotFile | None, kept: Callable[[], Kept]) -> None:
        self._disk = disk
        self._kept = kept
        self._saved = -1
        # A write that was given up goes on in its thread: none puts an older version over a newer one.
        self._writing = threading.Lock()
        self.unsaved = ""
        """What keeps the last policies from the disk; empty when nothing does."""

    async def keep(self, changes: AsyncIterator[object]) -> None:
        """Writes the file at every change, also while the source is away: a restart then would find nothing else."""
        if self._disk is None:
            return
        async for _ in changes:
            while self._saved != (kept := self._kept()).version:
                try:
                    await BUILDS.run(self._write, self._disk, kept)
                    self.unsaved = ""
                except Exception as error:  # whatever it is, an operator is to know
                    self._tell(error)
                    await asyncio.sleep(_RETRY_SECONDS)

    async def last(self) -> None:
        """Writes what is not on the disk yet, in a thread that nothing else keeps busy; gives up after a while."""
        if self._disk is None or self._saved == (kept := self._kept()).version:
            return
        done: Future[None] = Future()
        # The process ends whatever becomes of it.
        threading.Thread(target=self._finish, args=(self._disk, kept, done), name="last-save", daemon=True).start()
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await asyncio.wrap_future(done)
        except TimeoutError:
            self._tell(TimeoutError(f"not written within {_LAST_SECONDS:.0f} s"))
        except Exception as error:  # whatever it is, an operator is to know
            self._tell(error)

    def _finish(self, disk: SnapshotFile, kept: Kept, done: Future[None]) -> None:
        done.set_running_or_notify_cancel()
        try:
            self._write(disk, kept)
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    def _write(self, disk: SnapshotFile, kept: Kept) -> None:
        with self._writing:
            if kept.version > self._saved:
                age = time.monotonic() - kept.confirmed
                about = (age, kept.clock_offset, kept.overrides_at, kept.overrides_event)
                disk.save(kept.revision, kept.policies, kept.overrides, kept.own, *about)
                self._saved = kept.version

    def confirm(self) -> None:
        """Notes on the disk that what lies there is current, if it is what is decided from now."""
        if self._disk is not None and self._saved == self._kept().version:
            try:
                self._disk.confirm()
                self.unsaved = ""
            except OSError as error:
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Told once, however often it is tried."""
        problem = f"--snapshot-file: {error}; a restart without the store would find older policies"
        if problem != self.unsaved:
            log.error("%s", problem)
        self.unsaved = problem
