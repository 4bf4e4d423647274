"""Follows the policy store and holds the snapshot that the router decides from."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from sparsity.errors import StoreError
from sparsity_policies.model import Override, Scope, StoredPolicy
from sparsity_policies.snapshot import Snapshot
from sparsity_policies.store import Contents, PolicyStore

log = logging.getLogger("sparsity.router.policies")
KILL_SWITCH_ID = "signal"
_RETRY_SECONDS = 0.5


class PolicyFollower:
    """The newest good snapshot, kept while the store is away.

    Overrides set on this router act at once and hold whether or not the store can be reached.
    """

    def __init__(self, store: PolicyStore, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        self._snapshot: Snapshot | None = None
        self._stored_overrides: tuple[Override, ...] = ()
        self._local: dict[str, Override] = {}
        self._ended: set[str] = set()
        self._confirmed = 0.0
        self._loaded_at = 0.0
        self._changed = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        """What to decide from now."""
        assert self._snapshot is not None, "the follower has not started"
        return self._snapshot

    @property
    def age(self) -> float:
        """Seconds since the snapshot was last known to be current."""
        return time.monotonic() - self._confirmed

    @property
    def loaded_at(self) -> float:
        """When the snapshot was taken up, seconds since the epoch."""
        return self._loaded_at

    async def start(self) -> None:
        """Loads the first snapshot.

        Raises:
            StoreError: when the store cannot be read.
        """
        self._take(await self._store.read())

    async def follow(self) -> None:
        """Takes up every change, for as long as it runs; a failing store is asked again and again."""
        while True:
            try:
                async for _ in self._store.changes():
                    if await self._store.revision() != self.snapshot.revision:
                        self._take(await self._store.read())
                    self._confirmed = time.monotonic()
            except StoreError as error:
                log.warning("%s; serving revision %d, %.0f s old", error, self.snapshot.revision, self.age)
            except ValueError:
                log.exception("a change could not be taken up; serving revision %d", self.snapshot.revision)
            await asyncio.sleep(_RETRY_SECONDS)

    def _take(self, contents: Contents) -> None:
        held: list[StoredPolicy] = []
        for domain, problem in contents.rejected.items():
            before = self._snapshot.policies.get(domain) if self._snapshot else None
            held += [before.stored] if before else []
            fate = "its last good version is kept" if before else "it is served dense"
            log.error("policy store: %s cannot be read (%s); %s", domain, problem, fate)
        fresh = Snapshot.build(
            contents.revision, [*contents.policies, *held], rejected=contents.rejected, ttl=self._ttl
        )
        self._stored_overrides = tuple(contents.overrides)
        self._ended &= {override.id for override in contents.overrides}
        self._publish(fresh)
        self._confirmed = time.monotonic()

    def _publish(self, snapshot: Snapshot) -> None:
        active = {o.id: o for o in self._stored_overrides if o.id not in self._ended} | self._local
        self._snapshot = snapshot.with_overrides(active.values())
        self._loaded_at = time.time()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def set_override(self, override: Override, *, local: bool) -> None:
        """Makes an override act on this router at once; a ``local`` one stays until it is ended here."""
        if local:
            self._local[override.id] = override
        else:
            others = (other for other in self._stored_overrides if other.id != override.id)
            self._stored_overrides = (*others, override)
        self._ended.discard(override.id)
        self._publish(self.snapshot)

    def hand_over(self, override: Override) -> None:
        """Leaves a local override to the store, which has it now."""
        self.set_override(override, local=False)
        self._local.pop(override.id, None)

    def end_override(self, override_id: str) -> bool:
        """Ends an override on this router at once; False when it was not active."""
        known = any(override.id == override_id for override in self.snapshot.overrides)
        self._local.pop(override_id, None)
        self._ended.add(override_id)
        self._publish(self.snapshot)
        return known

    def kill(self) -> None:
        """The kill switch that needs no store: everything dense, until :meth:`unkill`."""
        log.warning("kill switch on: every request is served dense")
        override = Override(KILL_SWITCH_ID, Scope.GLOBAL, reason="kill switch by signal", actor="signal")
        self.set_override(override, local=True)

    def unkill(self) -> None:
        """Ends :meth:`kill`."""
        log.warning("kill switch off")
        self.end_override(KILL_SWITCH_ID)

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The present snapshot, then each that follows."""
        while True:
            changed = self._changed
            yield self.snapshot
            await changed.wait()

    async def reached(self, revision: int, timeout: float) -> bool:
        """Waits until the snapshot has ``revision``."""

        async def wait() -> None:
            async for snapshot in self.snapshots():
                if snapshot.revision >= revision:
                    return

        try:
            await asyncio.wait_for(wait(), timeout)
        except TimeoutError:
            return False
        return True
