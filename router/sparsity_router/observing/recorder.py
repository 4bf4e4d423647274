"""Writes decisions and audit events to the store in the background; a request never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from sparsity_policies.decisions.journal import Entry, is_sampled
from sparsity_policies.storage.decisionlog import AuditEvent, DecisionLog
from sparsity_rpc.errors import StoreError
from sparsity_serving.token_bucket import TokenBucket

log = logging.getLogger("sparsity.router.recorder")
audit_log = logging.getLogger("sparsity.audit")
_FLUSH_SECONDS = 0.2
_BATCH = 500
_HELD = 20_000
_BURST_SECONDS = 60.0
# What a router's options say unless they are given.
RATE, PER_SECOND = 1.0, 10.0
_T = TypeVar("_T")


class Recorder:
    """Bounded queues in front of the decision log; what does not fit is dropped and counted.

    Args:
        log: where to write; None keeps nothing.
        rate: share of the decisions that is written, in [0, 1].
        per_second: decisions that are written at most, over a minute's mean; the store must hold them for an hour.
    """

    def __init__(self, log: DecisionLog | None, rate: float = RATE, per_second: float = PER_SECOND) -> None:
        self._log = log
        self._rate = rate
        self._bucket = TokenBucket(per_second, _BURST_SECONDS * per_second)
        self._entries: deque[Entry] = deque(maxlen=_HELD)
        self._events: deque[AuditEvent] = deque(maxlen=_HELD)
        self._writing: asyncio.Task[None] | None = None
        self.dropped = 0

    def decision(self, decision_id: str, entry: Callable[[], Entry]) -> None:
        """Takes up a decision, when it is sampled; ``entry`` is called only then."""
        if self._log is not None and is_sampled(decision_id, self._rate) and self._bucket.spend():
            self.dropped += len(self._entries) == _HELD
            self._entries.append(entry())

    def audit(self, event: AuditEvent) -> None:
        """Takes up an audit event; it goes to this process's log too, whatever becomes of the store."""
        audit_log.info(
            "%s %s from %s: %s %s (%s)",
            event.actor, event.method, event.peer, event.status, event.target or "-", event.reason or "no reason",
        )  # fmt: skip
        if self._log is not None:
            self.dropped += len(self._events) == _HELD
            self._events.append(event)

    async def run(self) -> None:
        """Writes what was taken up, for as long as it runs; a failing store is asked again and again."""
        told = 0
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
            except StoreError as error:
                log.warning("%s; %d decisions and %d audit events wait", error, len(self._entries), len(self._events))
                await asyncio.sleep(1.0)
            if self.dropped > told:
                log.error("%d entries were dropped so far, because the store could not take them", self.dropped)
                told = self.dropped

    async def flush(self) -> None:
        """Writes everything that waits, and waits for what is under way; as long as the store's client does at most.

        A cancel ends the waiting, not the write: the store may have carried it out already, and would again.

        Raises:
            StoreError: when the store cannot take it; it then waits on.
        """
        if self._log is None:
            return
        if self._writing is not None:
            # What the store did not take of a flush that was cancelled waits again, and is written below.
            with contextlib.suppress(StoreError):
                await asyncio.shield(self._writing)
        while self._entries or self._events:
            self._writing = asyncio.create_task(self._write(self._log))
            await asyncio.shield(self._writing)

    async def _write(self, log: DecisionLog) -> None:
        """Writes one batch."""
        entries = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
        events = [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]
        try:
            await log.append(entries, events)
        except StoreError:
            _put_back(self._entries, entries)
            _put_back(self._events, events)
            raise
        except Exception:
            # What cannot be written keeps nothing else from it.
            self.dropped += len(entries) + len(events)
            raise
        finally:
            self._writing = None


def _put_back(queue: deque[_T], taken: list[_T]) -> None:
    """Puts the newest of ``taken`` that fit back to the front of ``queue``."""
    room = _HELD - len(queue)
    queue.extendleft(reversed(taken[-room:] if room else []))
