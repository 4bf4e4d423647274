"""Policies in Redis: documents, append-only revisions, overrides, and one stream that routers follow."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from sparsity_rpc.errors import ConflictError, NotFoundError, StoreError

from sparsity_policies.documents.document import Check, encode, unchecked
from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, open_policy, readable, seal_override
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Override, Policy, StoredPolicy
from sparsity_policies.storage import scripts, words
from sparsity_policies.storage.connection import close, connect, store_errors
from sparsity_policies.storage.contents import Asked, Contents, Cursor, Delta, Word
from sparsity_policies.storage.redis_url import read_url
from sparsity_policies.storage.scripts import EVENTS, HEAD, OVERRIDES, POLICIES, REVISION, SEEDED
from sparsity_policies.threads import BUILDS, DRAFTS

_READ_KEYS = (POLICIES, REVISION, EVENTS, OVERRIDES, HEAD)
_DELTA_EVENTS = 1000
_REPLICATION_MS = 1000
# Of the hundred that the library's pool has, before it refuses.
_CONNECTIONS = 48
# Revisions that are read at a time, until a page of them is this long.
_REVISIONS_READ, _PAGE_CHARACTERS = 10, 2**22


class History(NamedTuple):
    """A page of revisions, newest first, and where the next one goes on ``below``; None at the end."""

    revisions: list[StoredPolicy]
    below: int | None


class PolicyStore:
    """The store behind one Redis URL; see :mod:`sparsity_policies.storage.redis_url` for its forms.

    Every method raises StoreError when the server cannot be reached or does not answer in time.

    Args:
        url: the server, the sentinels or the cluster.
        timeout: of one command, seconds.
        wait_replicas: replicas that must hold a policy before its write is acknowledged, so that no failover loses it.
        check: finds the mistakes of what is read.
    """

    def __init__(self, url: str, timeout: float = 2.0, wait_replicas: int = 0, check: Check = check_policy) -> None:
        self._check = check
        self.redis: Any = connect(url, timeout)
        encrypted = read_url(url).tls is not None
        self._errors = partial(store_errors, encrypted)
        self._wait_replicas = wait_replicas
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        # Documents as last read: what did not change is not parsed again.
        self._opened: dict[str, tuple[str, StoredPolicy]] = {}

    async def close(self) -> None:
        """Closes the connections."""
        await close(self.redis)

    async def _run(self, script: str, keys: Iterable[str], *arguments: str | int) -> list[Any]:
        listed = list(keys)
        async with self._turns:
            answer: list[Any] = await self.redis.eval(script, len(listed), *listed, *arguments)
        return answer

    async def read(self) -> Contents:
        """Everything at one revision; what cannot be read is told, not raised."""
        with self._errors():
            revision, head, event, clock, overrides, policies = await self._run(scripts.READ, _READ_KEYS)
        offset = float(clock) - time.time()
        cursor = Cursor(_number(revision), head, event)
        # Thousands of documents take a while; requests go on meanwhile.
        envelopes = _pairs(policies)
        stored, rejected = await BUILDS.run(self._open_all, envelopes)
        self._opened = {domain: known for domain, known in self._opened.items() if domain in envelopes}
        active, broken = open_overrides(_pairs(overrides))
        return Contents(cursor, stored, active, rejected | broken, offset, (), cursor.revision, event)

    async def revision_number(self) -> int:
        """The store's revision; 0 when it is empty."""
        with self._errors():
            return _number(await self.redis.get(REVISION) or 0)

    async def head(self) -> str:
        """Changes with every write."""
        with self._errors():
            return str(await self.redis.get(HEAD) or "")

    async def delta(self, cursor: Cursor) -> Delta | None:
        """What changed since ``cursor``; None when only a whole read can tell."""
        with self._errors():
            answer = await self._run(scripts.DELTA, _READ_KEYS, cursor.event, _DELTA_EVENTS + 1)
        revision, head, event, clock, overrides, events, changed = answer
        offset = float(clock) - time.time()
        fresh = Cursor(_number(revision), head, event)
        # Every write raises the revision and adds one event. Anything else was trimmed, lost or done by hand.
        if fresh.revision - cursor.revision != events or events > _DELTA_EVENTS or (not events and head != cursor.head):
            return None
        envelopes = dict(zip(changed[::2], changed[1::2], strict=True))
        there = {domain: envelope for domain, envelope in envelopes.items() if envelope}
        # Never on the event loop: whoever wrote to the store, nothing here says that it was checked.
        stored, rejected = await BUILDS.run(self._open_all, there) if there else ([], {})
        policies: dict[str, StoredPolicy | None] = dict.fromkeys(envelopes.keys() - there.keys())
        policies |= {found.policy.domain: found for found in stored}
        active, broken = open_overrides(_pairs(overrides))
        return Delta(fresh, policies, active, rejected | broken, offset, fresh.revision, event)

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        """Returns at a change after ``cursor``, or after ``seconds``."""
        with self._errors():
            await self.redis.xread({EVENTS: cursor.event}, count=1, block=max(int(seconds * 1000), 1))

    def _open_all(self, envelopes: dict[str, str]) -> tuple[list[StoredPolicy], dict[str, str]]:
        stored, rejected = [], {}
        for domain, envelope in sorted(envelopes.items()):
            try:
                stored.append(self._open(domain, envelope))
            except UNREADABLE as error:
                rejected[domain] = f"{type(error).__name__}: {error}"
        return stored, rejected

    def _open(self, domain: str, envelope: str) -> StoredPolicy:
        known = self._opened.get(domain)
        if known is None or known[0] != envelope:
            known = self._opened[domain] = envelope, open_policy(envelope, domain, self._check)
        return known[1]

    async def put(
        self, policy: Policy, *, etag: str | None, actor: str, reason: str, seeding: bool = False
    ) -> StoredPolicy:
        """Writes a policy when ``etag`` matches; None writes whatever is there, an empty one only creates.

        Raises:
            ConflictError: when another etag is there, or, when ``seeding``, the domain was seeded before.
            InvalidRequestError: when the document is too large.
        """
        body = await DRAFTS.run(encode, policy)
        revision, fresh, time_ = await self._write(policy.domain, body, etag, actor, reason, seeding)
        return StoredPolicy(policy, fresh, revision, time_, actor, reason)

    async def delete(self, domain: str, *, etag: str | None, actor: str, reason: str) -> int:
        """Deletes a policy when ``etag`` matches, and returns the revision that says so.

        Raises:
            ConflictError: when another etag is there.
            NotFoundError: when there is no such policy.
        """
        revision, _, _ = await self._write(domain, "", etag, actor, reason, False)
        return revision

    async def _write(
        self, domain: str, body: str, etag: str | None, actor: str, reason: str, seeding: bool
    ) -> tuple[int, str, float]:
        """Revision, etag and time of a write; an empty ``body`` deletes."""
        fresh = uuid.uuid4().hex[:16]
        keys = (POLICIES, REVISION, EVENTS, scripts.history(domain), HEAD, SEEDED)
        arguments = (domain, "*" if etag is None else etag, body, fresh, actor, reason)
        limits = (scripts.EVENTS_KEPT, scripts.HISTORY_KEPT, int(seeding))
        answer = await self._acknowledged(scripts.PUT, keys, *arguments, *limits)
        outcome = int(answer[0])
        if outcome < 0:
            there = f"etag {answer[1]!r}" if answer[1] else "no such policy"
            raise ConflictError(f"policy {domain}: {there} is in the store, not {etag!r}; read it and try again")
        if outcome == 0 and body:
            raise ConflictError(f"policy {domain}: was seeded before")
        if outcome == 0:
            raise NotFoundError(f"policy {domain!r} does not exist")
        return outcome, fresh, float(answer[1])

    async def _acknowledged(self, script: str, keys: tuple[str, ...], *arguments: str | int) -> list[Any]:
        """Runs a writing script, and waits for replicas where that is asked for."""
        with self._errors():
            if not self._wait_replicas:
                return await self._run(script, keys, *arguments)
            # Both commands take one connection: WAIT speaks of the writes of its own.
            async with self._turns, self.redis.pipeline(transaction=False) as pipe:
                pipe.eval(script, len(keys), *keys, *arguments)
                pipe.execute_command("WAIT", self._wait_replicas, _REPLICATION_MS)
                answer, replicas = await pipe.execute()
        if int(answer[0]) > 0 and int(replicas) < self._wait_replicas:
            held = f"{replicas} of {self._wait_replicas} replicas hold the write"
            raise StoreError(f"policy store: {held}; a failover may lose it: read it again")
        return list(answer)

    async def history(self, domain: str, below: int | None = None, count: int = 100) -> History:
        """Revisions of a policy, newest first, of those ``below`` a revision; unreadable ones are left out.

        There are ``count`` of them at most, and fewer of large documents.
        """
        newest, size, found = "+" if below is None else f"({below}-0", 0, list[StoredPolicy]()
        while count > 0 and size < _PAGE_CHARACTERS:
            asked = min(count, _REVISIONS_READ)
            with self._errors():
                entries = await self.redis.xrevrange(scripts.history(domain), newest, "-", count=asked)
            envelopes = [str(fields.get("envelope", "")) for _, fields in entries]
            found += await DRAFTS.run(readable, domain, envelopes)
            if len(entries) < asked:
                return History(found, None)
            size, count, newest = size + sum(map(len, envelopes)), count - asked, f"({entries[-1][0]}"
        return History(found, int(newest[1:].partition("-")[0]))

    async def revision(self, domain: str, revision: int) -> StoredPolicy:
        """One revision of a policy, of the right shape; its meaning was checked when it was written.

        Raises:
            NotFoundError: when there is none, or it cannot be read any more.
        """
        place = f"{revision}-0"
        with self._errors():
            entries = await self.redis.xrange(scripts.history(domain), place, place)
        if not entries:
            raise NotFoundError(f"policy {domain!r} has no revision {revision}")
        try:
            return await DRAFTS.run(open_policy, entries[0][1]["envelope"], domain, unchecked)
        except UNREADABLE as error:
            raise NotFoundError(f"revision {revision} of policy {domain!r} cannot be read: {error}") from error

    async def seed(self, policies: Iterable[Policy]) -> list[str]:
        """Creates the policies that were never seeded before; what an operator changed or deleted stays so."""
        added = []
        for policy in policies:
            try:
                await self.put(policy, etag="", actor="sparsity-router", reason="shipped policy", seeding=True)
                added.append(policy.domain)
            except ConflictError:
                continue
        return added

    def resume(self, saved: Contents, age: float) -> bool:
        """Nothing goes on without the server."""
        return False

    async def put_override(self, override: Override, since: float = 0.0, token: str = "", read_at: int = 0) -> int:
        """Sets an override and returns the store's new revision.

        Args:
            override: to set.
            since: when it was said, seconds since the epoch by the store's clock; 0 is now.
            token: of this write, which is carried out once, however often it is sent.
            read_at: revision of the store that was known when it was said.

        Raises:
            ConflictError: when one that was said later, and that was not known then, caps as much.
        """
        told = ("", 0, read_at)
        revision = await self._override(override.id, seal_override(override), token=token, since=since, more=told)
        if revision < 0:
            raise ConflictError(f"override {override.id!r}: one that was set later caps as much")
        return revision

    async def delete_override(self, override_id: str, revision: int | None = None, *, anyway: bool = False) -> int:
        """Ends an override and returns the store's new revision.

        Args:
            override_id: of the override.
            revision: of the one that is meant; None for whichever is there.
            anyway: keeps the word of the end where there is none, for those who hold what the store has lost.

        Raises:
            NotFoundError: when there is none.
        """
        ended = await self._override(override_id, "", more=("" if revision is None else revision, int(anyway), 0))
        if not ended:
            raise NotFoundError(f"override {override_id!r} does not exist")
        return ended

    async def word_on(self, asked: Asked) -> Word:
        """What the store holds of an override, and whether that was said after what is asked about."""
        with self._errors():
            answer = await self._run(scripts.WORD, (EVENTS, OVERRIDES), *words.arguments(asked), scripts.EVENTS_KEPT)
        return words.read(asked, answer)

    async def _override(self, *told: str, token: str = "", since: float = 0.0, more: tuple[str | int, ...]) -> int:
        keys = (OVERRIDES, REVISION, EVENTS, HEAD)
        about = (scripts.EVENTS_KEPT, token or uuid.uuid4().hex[:16], words.milliseconds(since))
        answer = await self._acknowledged(scripts.OVERRIDE, keys, *told, *about, *more)
        return int(answer[0])


def _pairs(flat: Any) -> dict[str, str]:
    if isinstance(flat, dict):
        return flat
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _number(text: Any) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise StoreError(f"policy store: {REVISION} holds {text!r}, not a number") from error
