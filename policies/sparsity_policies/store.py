"""Policies in Redis: documents, append-only revisions, overrides, and one stream that routers follow.

All keys share the hash tag ``{sparsity}``, so that every script touches one slot of a Cluster.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from sparsity.errors import ConfigurationError, ConflictError, InvalidRequestError, NotFoundError, StoreError

from sparsity_policies.document import parse_policy, to_document
from sparsity_policies.model import Override, Policy, Scope, StoredPolicy, Tier

PREFIX: Final = "{sparsity}:"
_POLICIES, _REVISION, _EVENTS, _OVERRIDES, _SEEDED = (
    PREFIX + name for name in ("policies", "revision", "events", "overrides", "seeded")
)
_EVENTS_KEPT: Final = 100_000

# Compare-and-set in one step. KEYS: policies, revision, events. ARGV: domain, expected etag or "*", body, etag, time,
# actor, reason. An empty expected etag only creates. Returns {revision} or {-1, present etag}.
_PUT = """
local present = redis.call('HGET', KEYS[1], ARGV[1])
local etag = ''
if present then
  local ok, envelope = pcall(cjson.decode, present)
  etag = ok and type(envelope) == 'table' and type(envelope.etag) == 'string' and envelope.etag or 'unreadable'
end
if ARGV[2] ~= '*' and ARGV[2] ~= etag then return {-1, etag} end
local revision = redis.call('INCR', KEYS[2])
local envelope = cjson.encode({etag = ARGV[4], revision = revision, time = ARGV[5], actor = ARGV[6], reason = ARGV[7],
                               body = ARGV[3]})
redis.call('HSET', KEYS[1], ARGV[1], envelope)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'domain', ARGV[1], 'revision', revision, 'envelope', envelope)
return {revision}
"""

# KEYS: overrides, revision, events. ARGV: id, body or "" to delete, stream length. Returns {revision} or {0} if absent.
_OVERRIDE = """
if ARGV[2] == '' then
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return {0} end
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
local revision = redis.call('INCR', KEYS[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'override', ARGV[1], 'revision', revision)
return {revision}
"""


class Contents(NamedTuple):
    """Everything in the store at one revision.

    Attributes:
        revision: the store's revision.
        policies: the readable ones.
        overrides: the readable ones.
        rejected: what could not be read, by domain or override id.
    """

    revision: int
    policies: list[StoredPolicy]
    overrides: list[Override]
    rejected: dict[str, str]


@contextmanager
def _store_errors() -> Any:
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreError(f"policy store: {type(error).__name__}: {error}") from error


def make_etag(body: str, revision_hint: float) -> str:
    """Changes with every write, even of an equal document."""
    return hashlib.sha256(f"{revision_hint} {body}".encode()).hexdigest()[:16]


class PolicyStore:
    """The store behind one Redis URL (`redis://`, `rediss://` or `unix://`).

    Every method raises StoreError when the server cannot be reached or does not answer in time.
    """

    def __init__(self, url: str, timeout: float = 2.0) -> None:
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                # Bytes that are no text become a document that cannot be read, and is told as such.
                encoding_errors="replace",
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=2),
            )
        except ValueError as error:
            raise ConfigurationError(f"redis url: {error}") from error
        self._put = self._redis.register_script(_PUT)
        self._override = self._redis.register_script(_OVERRIDE)

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def revision(self) -> int:
        """The store's revision; 0 when it is empty."""
        with _store_errors():
            return int(await self._redis.get(_REVISION) or 0)

    async def read(self) -> Contents:
        """Everything at one revision; what cannot be read is told, not raised."""
        with _store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(_REVISION).hgetall(_POLICIES).hgetall(_OVERRIDES)
                revision, policies, overrides = await pipe.execute()
        rejected: dict[str, str] = {}
        stored, active = [], []
        for domain, envelope in sorted(policies.items()):
            try:
                policy = _open(envelope)
                if policy.policy.domain != domain:
                    raise ValueError(f"holds the policy of {policy.policy.domain!r}")
                stored.append(policy)
            except (ValueError, TypeError, KeyError, InvalidRequestError) as error:
                rejected[domain] = f"{type(error).__name__}: {error}"
        for name, body in sorted(overrides.items()):
            try:
                active.append(_open_override(name, body))
            except (ValueError, TypeError, KeyError) as error:
                # An override that cannot be read may have been a kill switch.
                active.append(Override(name, Scope.GLOBAL, reason="unreadable override, held as a global kill switch"))
                rejected[f"override {name}"] = f"{type(error).__name__}: {error}"
        try:
            number = int(revision or 0)
        except ValueError as error:
            raise StoreError(f"policy store: {_REVISION} holds {revision!r}, not a number") from error
        return Contents(number, stored, active, rejected)

    async def put(self, policy: Policy, *, etag: str | None, actor: str, reason: str) -> StoredPolicy:
        """Writes a policy when ``etag`` matches; None writes whatever is there, an empty one only creates.

        Raises:
            ConflictError: when another etag is there.
        """
        body = json.dumps(to_document(policy), sort_keys=True)
        now = time.time()
        fresh = make_etag(body, now)
        arguments: list[str | int] = [
            policy.domain,
            "*" if etag is None else etag,
            body,
            fresh,
            repr(now),
            actor,
            reason,
            _EVENTS_KEPT,
        ]
        with _store_errors():
            answer = await self._put(keys=[_POLICIES, _REVISION, _EVENTS], args=arguments)
        if int(answer[0]) < 0:
            there = f"etag {answer[1]!r}" if answer[1] else "no such policy"
            raise ConflictError(f"policy {policy.domain}: {there} is in the store, not {etag!r}; read it and try again")
        return StoredPolicy(policy, fresh, int(answer[0]), now, actor, reason)

    async def seed(self, policies: Iterable[Policy]) -> list[str]:
        """Creates the policies that were never seeded before; what an operator changed or deleted stays so."""
        added = []
        for policy in policies:
            with _store_errors():
                if not await self._redis.sadd(_SEEDED, policy.domain):
                    continue
            try:
                await self.put(policy, etag="", actor="sparsity-router", reason="shipped policy")
                added.append(policy.domain)
            except ConflictError:
                continue
        return added

    async def put_override(self, override: Override) -> int:
        """Sets an override and returns the store's new revision."""
        body = json.dumps(
            {
                "scope": override.scope.value,
                "target": override.target,
                "max_tier": override.max_tier.value,
                "expire_time": override.expire_time,
                "reason": override.reason,
                "actor": override.actor,
            }
        )
        with _store_errors():
            answer = await self._override(keys=[_OVERRIDES, _REVISION, _EVENTS], args=[override.id, body, _EVENTS_KEPT])
        return int(answer[0])

    async def delete_override(self, override_id: str) -> int:
        """Ends an override and returns the store's new revision.

        Raises:
            NotFoundError: when there is none.
        """
        with _store_errors():
            answer = await self._override(keys=[_OVERRIDES, _REVISION, _EVENTS], args=[override_id, "", _EVENTS_KEPT])
        if not int(answer[0]):
            raise NotFoundError(f"override {override_id!r} does not exist")
        return int(answer[0])

    async def changes(self, wait: float = 1.0) -> AsyncIterator[None]:
        """Yields at every change, and at least every ``wait`` seconds, while the server answers."""
        last = "$"
        while True:
            with _store_errors():
                answer = await self._redis.xread({_EVENTS: last}, count=1000, block=int(wait * 1000))
            if answer:
                entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
                last = entries[-1][0]
            yield


def _open(envelope: str) -> StoredPolicy:
    outer = json.loads(envelope)
    policy = parse_policy(json.loads(outer["body"]))
    revision, updated = int(outer["revision"]), float(outer["time"])
    return StoredPolicy(policy, str(outer["etag"]), revision, updated, str(outer["actor"]), str(outer["reason"]))


def _open_override(name: str, body: str) -> Override:
    fields = json.loads(body)
    expires = fields["expire_time"]
    return Override(
        id=name,
        scope=Scope(fields["scope"]),
        target=str(fields["target"]),
        max_tier=Tier(fields["max_tier"]),
        expire_time=None if expires is None else float(expires),
        reason=str(fields["reason"]),
        actor=str(fields["actor"]),
    )
