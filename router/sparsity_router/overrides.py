"""The overrides that act on one router: those of the store, and those set here while it was away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from sparsity.errors import NotFoundError, StoreError
from sparsity_policies.model import Override, Scope
from sparsity_policies.store import PolicyStore

log = logging.getLogger("sparsity.router.overrides")
KILL_SWITCH_ID = "signal"
_RETRY_SECONDS = 1.0


class Overrides:
    """Overrides by id; ``publish`` is called at every change, before anything is waited for."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._stored: dict[str, Override] = {}
        self._local: dict[str, Override] = {}
        self._ended: set[str] = set()
        self.tell: Callable[[str, Override | str], None] = lambda event, override: None
        """Told of every `put`, `end` and `stored` at this process."""

    def active(self) -> list[Override]:
        """What acts now; expiry is looked at by the decision."""
        there = {name: override for name, override in self._stored.items() if name not in self._ended}
        return list((there | self._local).values())

    def stored(self, overrides: Iterable[Override]) -> None:
        """Takes up what the store holds now."""
        fresh = {override.id: override for override in overrides}
        self._ended &= fresh.keys()
        if fresh != self._stored:
            self._stored = fresh
            self._publish()

    def put(self, override: Override) -> None:
        """Makes an override act at once; it stays until it is ended here or handed over."""
        self.tell("put", override)
        self.take("put", override)

    def take(self, event: str, override: Override | str) -> None:
        """Takes up what happened, here or at another process of this machine: `put`, `end` or `stored`."""
        if isinstance(override, Override):
            self._local[override.id] = override
            self._ended.discard(override.id)
        else:
            self._local.pop(override, None)
            if event == "end":
                self._ended.add(override)
        self._publish()

    def hand_over(self, override: Override) -> None:
        """Leaves an override to the store, which has it now."""
        self._stored[override.id] = override
        if self._local.get(override.id) == override:
            del self._local[override.id]
            self.tell("stored", override.id)
        self._publish()

    def end(self, override_id: str) -> bool:
        """Ends an override at once; False when it was not active."""
        known = any(override.id == override_id for override in self.active())
        self.tell("end", override_id)
        self.take("end", override_id)
        return known

    def kill(self) -> None:
        """The kill switch that needs no store: everything dense, until :meth:`unkill`."""
        log.warning("kill switch on: every request is served dense")
        self.put(Override(KILL_SWITCH_ID, Scope.GLOBAL, reason="kill switch by signal", actor="signal"))

    def unkill(self) -> None:
        """Ends :meth:`kill`."""
        log.warning("kill switch off")
        self.end(KILL_SWITCH_ID)

    def waiting(self) -> list[Override]:
        """Overrides set here that the store does not have; the one by signal is this process's own."""
        return [override for override in self._local.values() if override.id != KILL_SWITCH_ID]

    async def deliver(self, store: PolicyStore) -> None:
        """Writes what was set while the store was away once it is back, for as long as it runs."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            for override in self.waiting():
                try:
                    await store.put_override(override)
                except StoreError:
                    break
                if override not in self._local.values():
                    log.warning("override %s was ended while it was written", override.id)
                    with contextlib.suppress(StoreError, NotFoundError):
                        await store.delete_override(override.id)
                    continue
                log.warning("override %s is in the store now", override.id)
                self.hand_over(override)
