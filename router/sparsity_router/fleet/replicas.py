"""The routers that share a store, as each tells it of itself every few seconds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsity_policies.documents.document import is_text
from sparsity_policies.documents.envelope import UNREADABLE
from sparsity_policies.storage.redis_faults import CLIENT_ERRORS, told
from sparsity_policies.storage.scripts import PREFIX

log = logging.getLogger("sparsity.router.replicas")
_KEY = PREFIX + "replicas"
_TELL_SECONDS = 2.0
_HEARD_SECONDS = 10.0
_ANSWER_SECONDS = 0.5
_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Replica:
    """One router process.

    Attributes:
        router_id: unique to the process.
        address: where it listens.
        revision: of the policies that it decides from.
        content_hash: equal on routers that decide alike.
        policy_age: since its policies were last known to be current, seconds.
        policy_lag: since it has known of a change that it has not taken up, seconds.
        heard: when it said so, seconds since the epoch by the store's clock.
        problems: what an operator must mend.
    """

    router_id: str
    address: str
    revision: int
    content_hash: str
    policy_age: float
    policy_lag: float
    heard: float
    problems: tuple[str, ...] = ()


def _read(text: str) -> Replica | None:
    """A router as it tells of itself; None where that cannot be read."""
    try:
        told = Replica(**json.loads(text))
        words = (told.router_id, told.address, told.content_hash, *told.problems)
        seconds = (told.policy_age, told.policy_lag, told.heard)
        readable = all(map(is_text, words)) and all(abs(each) < 1e12 for each in seconds)
        return told if readable and isinstance(told.revision, int) and 0 <= told.revision < 2**64 else None
    except UNREADABLE:
        return None


class Replicas:
    """Tells of this router, and knows of the others.

    Args:
        follower: whose state is told.
        redis: an asyncio client; None knows of this router only.
        problems: what an operator must mend besides, in words.
    """

    def __init__(self, follower: Any, redis: Any = None, problems: Callable[[], list[str]] = list) -> None:
        self.router_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.address = ""
        self._follower = follower
        self._redis = redis
        self._problems = problems

    def own(self) -> Replica:
        """This router now."""
        follower, at = self._follower, self._follower.snapshot
        state = (at.revision, at.content_hash, follower.age, follower.lag)
        found = (follower.unsaved, _left_out(at.rejected), *self._problems())
        problems = tuple(problem[:_MOST_CHARACTERS] for problem in found if problem)
        return Replica(self.router_id, self.address, *state, follower.now(), problems)

    async def all(self) -> list[Replica]:
        """Every router heard lately, by its id; this one alone while the store is away."""
        found = {self.router_id: self.own()}
        told = await self._try(lambda: self._redis.hgetall(_KEY)) if self._redis is not None else None
        for text in (told or {}).values():
            other = _read(text)
            # All tell the time by the store's clock: their own may be wrong.
            if other is not None and abs(self._follower.now() - other.heard) < _HEARD_SECONDS:
                found.setdefault(other.router_id, other)
        return [found[name] for name in sorted(found)]

    async def run(self) -> None:
        """Tells of this router, for as long as it runs, and clears away who is gone."""
        try:
            while True:
                await self._try(lambda: self._redis.hset(_KEY, self.router_id, json.dumps(asdict(self.own()))))
                there = {replica.router_id for replica in await self.all()}
                known = await self._try(lambda: self._redis.hkeys(_KEY))
                if gone := set(known or ()) - there:
                    await self._try(lambda: self._redis.hdel(_KEY, *sorted(gone)))
                await asyncio.sleep(_TELL_SECONDS)
        finally:
            await self._try(lambda: self._redis.hdel(_KEY, self.router_id))

    async def _try(self, command: Callable[[], Any]) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await command()
        except CLIENT_ERRORS as error:
            log.debug("the store does not answer: %s", told(error))
            return None


def _left_out(rejected: Sequence[str]) -> str:
    """What to mend in policies; empty for nothing."""
    names = ", ".join(rejected)
    return f"policies cannot be read or taken up, as the router's log says: {names}" if names else ""
