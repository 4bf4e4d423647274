"""The tier of a conversation, which is held as dense as its riskiest request: risk does not go away.

Routers share it by way of the policy store's server, written behind the request. While that is away, a router knows
what it served itself and what it read a while ago; a session that it cannot know of is in doubt.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachetools import LRUCache
from sparsity_policies.model import TTL_SECONDS, Decision, Tier
from sparsity_policies.storage.asking import Asking
from sparsity_policies.storage.redis_faults import CLIENT_ERRORS, told

log = logging.getLogger("sparsity.router.sessions")
SESSION_SECONDS = 3600
_HELD = 100_000
# What other routers noted meanwhile is looked up this often.
_FRESH_SECONDS = 5.0
_READ_SECONDS = 0.05
_FLUSH_SECONDS = 0.1
_AT_ONCE = 32
# Routers write in any order: the densest stays.
_KEEP_DENSEST = """
local there = tonumber(redis.call('GET', KEYS[1]) or '')
local tier = math.min(tonumber(ARGV[1]), there or 99)
return redis.call('SET', KEYS[1], tier, 'EX', ARGV[2])
"""


@dataclass(slots=True)
class _Known:
    """What this router knows of a session.

    Attributes:
        tier: the densest so far.
        used_at: when it was last asked for.
        read_at: when the store last told of it.
        reading: a question to the store that has no answer yet.
    """

    tier: Tier | None
    used_at: float
    read_at: float = float("-inf")
    reading: asyncio.Task[str] | None = None


class SessionTier(NamedTuple):
    """A session's tier so far, None for a new one, and what keeps it from being known; empty when nothing does."""

    tier: Tier | None
    problem: str = ""


class Sessions:
    """The densest tier that policy gave each session of the last hour, but for what passes.

    Args:
        redis: an asyncio client; None keeps them in this process only.
        ttl: how long what the store told is believed while it is away, seconds: as policies are.
    """

    def __init__(self, redis: Any = None, ttl: float = TTL_SECONDS) -> None:
        self._redis, self._ttl = redis, ttl
        self._known: LRUCache[str, _Known] = LRUCache(_HELD)
        self._unsaved: dict[str, Tier] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._asking = Asking()

    async def tier(self, tenant: str, session: str) -> SessionTier:
        """The session's tier; requests that come at once wait for one answer of the store."""
        if not session:
            return SessionTier(None)
        key, now = _key(tenant, session), time.monotonic()
        known = self._known.get(key)
        if known is None or now - known.used_at > SESSION_SECONDS:
            known = self._known[key] = _Known(None, now)
        known.used_at = now
        if self._redis is None or now - known.read_at <= _FRESH_SECONDS:
            return SessionTier(known.tier)
        if known.reading is None:
            known.reading = asyncio.create_task(self._read(key, known))
        # Whoever leaves must not take the answer from the others.
        problem = await asyncio.shield(known.reading)
        if time.monotonic() - known.read_at <= self._ttl:
            return SessionTier(known.tier)
        return SessionTier(known.tier, f"what the session's earlier requests got cannot be known: {problem}")

    def held(self, tenant: str, session: str) -> Tier | None:
        """The session's tier as far as this router knows it now, without asking anybody."""
        known = self._known.get(_key(tenant, session)) if session else None
        return known.tier if known else None

    def served(self, tenant: str, session: str, decision: Decision) -> None:
        """Takes note of what policy gave but for what passes, however dense that made the request."""
        if not session or decision.lasting is None:
            return
        key = _key(tenant, session)
        if (known := self._known.get(key)) is None:
            # Others took its place while it was answered; what the store has of it is asked for again.
            known = self._known[key] = _Known(None, time.monotonic())
        known.tier = _denser(known.tier, decision.lasting)
        if self._redis is not None and known.tier is not None:
            self._unsaved[key] = known.tier

    async def _read(self, key: str, known: _Known) -> str:
        """Asks the store; what kept it from an answer, or nothing."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._turns.acquire()
                value = await self._asking.answer(self._get(key), _READ_SECONDS)
            known.tier = _denser(known.tier, Tier(int(value)) if value else None)
            known.read_at = time.monotonic()
            return ""
        except (*CLIENT_ERRORS, ValueError) as error:
            return told(error) if str(error) else "the store did not answer in time"
        finally:
            known.reading = None

    async def _get(self, key: str) -> Any:
        """In a turn that was taken before."""
        try:
            return await self._redis.get(key)
        finally:
            self._turns.release()

    async def run(self) -> None:
        """Writes what was noted, for as long as it runs."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            if not await self.flush():
                await asyncio.sleep(1.0)

    async def flush(self) -> bool:
        """Writes what was noted and not written yet; whether that was possible."""
        unsaved, self._unsaved = self._unsaved, {}
        written = False
        try:
            await asyncio.gather(*(self._write(key, tier) for key, tier in unsaved.items()))
            written = True
        except CLIENT_ERRORS as error:
            log.warning("sessions are known to this router only: %s", told(error))
        finally:
            if not written:
                # Also where the router ends meanwhile: what was under way is written again then.
                self._unsaved = dict(list((unsaved | self._unsaved).items())[-_HELD:])
        return written

    async def _write(self, key: str, tier: Tier) -> None:
        async with self._turns:
            await self._redis.eval(_KEEP_DENSEST, 1, key, int(tier), SESSION_SECONDS)


class Session(NamedTuple):
    """One session, or none where requests name none or may move freely."""

    sessions: Sessions | None
    tenant: str
    name: str

    async def tier(self) -> SessionTier:
        """Its tier so far."""
        return await self.sessions.tier(self.tenant, self.name) if self.sessions else SessionTier(None)

    def held(self) -> Tier | None:
        """Its tier as far as this router knows it now."""
        return self.sessions.held(self.tenant, self.name) if self.sessions else None

    def served(self, decision: Decision) -> None:
        """Takes note of what policy gave."""
        if self.sessions:
            self.sessions.served(self.tenant, self.name, decision)


def _denser(one: Tier | None, other: Tier | None) -> Tier | None:
    return min((tier for tier in (one, other) if tier is not None), default=None)


def _key(tenant: str, session: str) -> str:
    """A key that tells nobody's name."""
    digest = hashlib.sha256(f"{tenant}\0{session}".encode()).hexdigest()
    return f"sparsity:session:{digest[:32]}"
