"""Follows a source of policies and holds the snapshot that the router decides from."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator

from sparsity_policies.decisions.model_bands import NO_BANDS, ModelBands
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.confined import NO_PROCESS, SOURCES
from sparsity_policies.storage.contents import Contents, Delta, PolicySource
from sparsity_policies.threads import BUILDS
from sparsity_rpc.errors import StoreError
from sparsity_serving.background.jobs import JOBS

from sparsity_router.following.building import NOTHING_READ, Builder, Wanted, tell_left_out
from sparsity_router.following.known import Read
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.saving import Kept, Saving
from sparsity_router.following.snapshot_file import SnapshotFile

log = logging.getLogger("sparsity.router.policies")
_WAIT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_CLOCK_TOLERANCE = 0.5
# What nobody could check, for want of a process, is looked at again after so long.
_UNCHECKED_SECONDS = 30.0
# Past the limits of what compiles and learns, on a busy machine: a build that takes longer is no work, but stuck.
_BUILD_SECONDS = 60.0


class PolicyFollower:
    """The newest good snapshot, kept while the source is away.

    Overrides set on this router act at once and hold whether or not the source can be reached.
    """

    def __init__(
        self, source: PolicySource, ttl: float, disk: SnapshotFile | None = None, model_bands: ModelBands = NO_BANDS
    ) -> None:
        self._source = source
        self._disk = disk
        # Of what is decided from: counted up at every change.
        self._version = 0
        self.saving = Saving(disk, self._kept)
        self._snapshot: Snapshot | None = None
        self._wanted = self._built = NOTHING_READ
        self._builder = Builder(ttl, SOURCES.compile, SOURCES.learn, model_bands)
        self._building_since: float | None = None
        self._read_at = float("-inf")
        self.overrides = Overrides(self._publish_overrides, self.now)
        self._confirmed = self._looked = 0.0
        self._behind_since: float | None = None
        self.loaded_at = 0.0
        """When the snapshot was taken up, seconds since the epoch."""
        self._clock = time.time() - time.monotonic()
        self._at = 0, ""
        self._changed = asyncio.Event()
        self._looking, self._building = asyncio.Lock(), asyncio.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """What to decide from now."""
        assert self._snapshot is not None, "the follower has not started"
        return self._snapshot

    @property
    def unsaved(self) -> str:
        """What keeps the last policies from the disk; empty when nothing does."""
        return self.saving.unsaved

    @property
    def age(self) -> float:
        """Seconds since the snapshot was last known to be current."""
        return time.monotonic() - self._confirmed

    @property
    def lag(self) -> float:
        """Seconds since this router has known of a change that it has not taken up; 0 when there is none."""
        return 0.0 if self._behind_since is None else time.monotonic() - self._behind_since

    @property
    def waits(self) -> float:
        """As :attr:`lag`, but 0 while the change is being compiled for the first time: so it is by all routers."""
        since = self._building_since or float("-inf")
        return 0.0 if time.monotonic() - since < _BUILD_SECONDS else self.lag

    def now(self) -> float:
        """Seconds since the epoch by the source's clock, so that replicas with skewed clocks expire overrides alike."""
        return time.monotonic() + self._clock

    async def start(self) -> None:
        """Loads the first snapshot; from disk, where there is one, while the source is away.

        What was set on this router and the source never had acts on; of one that it was told of since, its word holds.

        Raises:
            StoreError: when neither can be read.
            NoProcessError: when nothing can be compiled now.
        """
        saved, unread = None, None
        if self._disk is not None:
            try:
                saved = await BUILDS.run(self._disk.load)
            except StoreError as error:
                unread = error
        if saved is not None:
            # A store that has gone back since then has ended none.
            numbered = [override for override in saved.handed_over if override.revision]
            self.overrides.stored(Read(numbered, saved.overrides_at, saved.overrides_event))
        try:
            await self.refresh()
        except StoreError as error:
            if unread is not None:
                raise unread from error
            if self._disk is None or saved is None:
                raise
            await self._resume(await BUILDS.run(self._disk.contents, saved), saved.age)
            log.warning("%s; serving revision %d from disk, %.0f s old", error, self.snapshot.revision, saved.age)
        if saved is not None:
            # By a clock that was not known yet, times were this machine's.
            moved = 0.0 if saved.is_clock_known else self.now() - time.time() - saved.clock_offset
            self.overrides.restore(own.by_a_clock_later(moved) for own in saved.own)
            with contextlib.suppress(StoreError):
                await self.overrides.give_way(self._source)
        elif unread is not None and not isinstance(unread.__cause__, FileNotFoundError):
            log.error("%s; what was set here without the store is lost", unread)

    async def _resume(self, contents: Contents, age: float) -> None:
        """Goes on from what was saved before a restart; with a folder's own files, where only its store is away."""
        self._wanted = NOTHING_READ.read(contents, tell=False)
        self._set_clock(contents.clock_offset)
        self._at = contents.overrides_at, contents.overrides_event
        self.overrides.stored(Read(contents.overrides, *self._at))
        await self._build()
        self._confirmed = time.monotonic() - age
        if self._source.resume(contents, age):
            with contextlib.suppress(StoreError):
                await self.refresh()

    async def follow(self) -> None:
        """Takes up every change, for as long as it runs; a failing source is asked again and again.

        Overrides act as soon as they are read: compiling and saving policies go on beside it, however long they take.
        """
        building: asyncio.Task[None] | None = None
        saving = asyncio.create_task(self.saving.keep(self.snapshots()))
        try:
            while True:
                try:
                    await self._source.wait(self._wanted.cursor, _WAIT_SECONDS)
                    began = time.monotonic()
                    await self._look()
                    if building is None or building.done():
                        building = asyncio.create_task(self._keep_building())
                    if self._is_current and self._looked >= began:
                        self.saving.confirm()
                    continue
                except StoreError as error:
                    log.warning("%s; serving revision %d, %.0f s old", error, self.snapshot.revision, self.age)
                except Exception as error:  # a change that nobody sees counts as one that is not taken up
                    JOBS.failed("policies", error)
                    self._behind_since = self._behind_since or time.monotonic()
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            for task in (saving, *((building,) if building else ())):
                task.cancel()

    @property
    def _is_current(self) -> bool:
        """Whether what is decided from is what the source held at the last look."""
        return self._wanted == self._built

    def _kept(self) -> Kept:
        """What a restart is to begin with."""
        policies = [item.stored for item in self.snapshot.policies.values()]
        overrides = (self.overrides.active(), self.overrides.local())
        offset = self.now() - time.time()
        return Kept(self._version, self.snapshot.revision, policies, *overrides, self._confirmed, offset, *self._at)

    async def refresh(self) -> None:
        """Takes up what changed.

        Raises:
            StoreError: when the source cannot be read.
            NoProcessError: when nothing can be compiled now.
        """
        await self._look()
        await self._build()

    async def _keep_building(self) -> None:
        try:
            while not self._is_current:
                await self._build()
        except Exception:
            self._building_since = float("-inf")
            log.exception("a change could not be taken up; serving revision %d", self.snapshot.revision)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _look(self) -> None:
        """Reads what changed, and lets overrides act; by turns, so that no read brings back an older state."""
        async with self._looking:
            await self._look_once()

    async def _look_once(self) -> None:
        wanted, looked = self._wanted, time.monotonic()
        unchecked = any(NO_PROCESS in problem for problem in wanted.rejected.values())
        again = unchecked and looked - self._read_at > _UNCHECKED_SECONDS
        delta = None if again else await self._source.delta(wanted.cursor)
        if delta is None:
            contents, self._read_at = await self._source.read(), looked
            self._wanted = wanted.read(contents)
        elif delta.cursor != wanted.cursor:
            self._wanted = wanted.changed(delta)
        # What a folder says is as old as what its store said last.
        await self._take_overrides(found := delta or contents, looked := min(looked, found.read_at))
        self._looked = looked
        self._confirm()

    async def _take_overrides(self, found: Contents | Delta, looked: float) -> None:
        self._set_clock(found.clock_offset)
        self._at = found.overrides_at, found.overrides_event
        await self.overrides.take_up(Read(found.overrides, *self._at, looked), self._source)

    def _confirm(self) -> None:
        """Notes whether what is decided from is what the source holds."""
        if self._is_current:
            self._confirmed = self._looked
            self._behind_since = None
        else:
            self._behind_since = self._behind_since or time.monotonic()

    async def _build(self) -> None:
        """Compiles what is wanted now, off the event loop, and decides from it, as far as it can be taken up."""
        async with self._building:
            if self._is_current and self._snapshot is not None:
                return
            self._building_since = self._building_since or time.monotonic()
            before, wanted = self._snapshot, self._wanted
            await self._build_most(wanted)
            if self._builder.forget_refused(before, self.snapshot):
                await self._build_most(wanted)
            self._building_since = None

    async def _build_most(self, wanted: Wanted) -> None:
        before = self._builder.problems
        of = wanted.cursor.revision, wanted.policies, wanted.rejected
        fresh = await BUILDS.run(self._builder.build, *of, self._snapshot)
        tell_left_out("taken up", self._builder.problems, before, fresh.policies)
        self._built = wanted
        self._publish(dataclasses.replace(fresh, drifted=wanted.drifted))
        self._confirm()

    def _set_clock(self, offset: float) -> None:
        """Takes the source's time, reckoned by the monotonic clock: this machine's may be set meanwhile."""
        moved, self._clock = time.time() + offset - self.now(), time.time() + offset - time.monotonic()
        if abs(moved) > _CLOCK_TOLERANCE:
            log.warning("this machine's clock differs from the policy source's by %.1f s; theirs is used", -offset)
        self.overrides.clock_moved(moved)

    def _publish_overrides(self) -> None:
        if self._snapshot is not None:
            self._publish(self._snapshot)

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot.with_overrides(self.overrides.active())
        self.loaded_at = time.time()
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The present snapshot, then each that follows."""
        while True:
            changed = self._changed
            yield self.snapshot
            await changed.wait()

    async def reached(self, revision: int, timeout: float) -> bool:
        """Waits until the snapshot has ``revision``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                async for snapshot in self.snapshots():
                    if snapshot.revision >= revision:
                        return True
        return False
