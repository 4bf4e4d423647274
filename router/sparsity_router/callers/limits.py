"""Request and token rates of tenants, counted in the policy store's Redis over all routers; locally while it is away.

    default: {requests: 100/second, tokens: 2000000/minute}
    tenants:
      acme: {requests: 10/second, priority: 5}   # what it does not say is the default's

A request that claims more than its tenant's ``priority`` (0 to 9, the default) gets that.

Counted by sliding windows (the `limits` library). A request counts its prompt tokens, as far as they are known, and the
tokens that it may generate; once it has ended, what it did not use is taken off the tenant's next calls to this router.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachetools import TLRUCache
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from sparsity_policies.storage.connection import close, quoted
from sparsity_rpc.errors import ConfigurationError, RateLimitError
from sparsity_serving.bounds import MAX_PRIORITY

from sparsity_router.callers.options_file import read_options_file

log = logging.getLogger("sparsity.router.limits")
_ANSWER_SECONDS = 0.05
# After a failure the store is left alone for this long.
_AWAY_SECONDS = 1.0
_MOST_CREDITS = 10_000


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a tenant; None is no limit. ``priority`` is the first that it may claim."""

    requests: RateLimitItem | None = None
    tokens: RateLimitItem | None = None
    priority: int = MAX_PRIORITY


class TenantLimits:
    """Counts what tenants use.

    Args:
        default: rates of tenants without their own.
        tenants: rates by tenant.
        redis_url: where routers count together; None counts in this process.
    """

    def __init__(self, default: Rates, tenants: Mapping[str, Rates], redis_url: str | None) -> None:
        self._default = default
        self._tenants = dict(tenants)
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = SlidingWindowCounterRateLimiter(_storage(redis_url)) if redis_url else None
        self._away_until = 0.0
        # What was counted and not used, and until when it may be made up for.
        self._credits: TLRUCache[tuple[str, str], tuple[int, float]] = TLRUCache(
            _MOST_CREDITS, lambda key, credit, now: credit[1], timer=lambda: time.monotonic()
        )

    @classmethod
    def load(cls, path: Path | None, redis_url: str | None) -> TenantLimits | None:
        """Reads a file; None without one.

        Raises:
            ConfigurationError: naming the file and the entry.
        """
        if path is None:
            return None
        document = read_options_file("--tenant-limits", path)
        if not isinstance(document, dict) or not document.keys() <= {"default", "tenants"}:
            raise ConfigurationError(f"--tenant-limits: {path}: must have `default` and `tenants`, and no other field")
        default = _rates(document.get("default", {}), Rates(), f"--tenant-limits: {path}: default")
        entries = document.get("tenants", {})
        if not isinstance(entries, dict):
            raise ConfigurationError(f"--tenant-limits: {path}: tenants: must map names to rates")
        where = f"--tenant-limits: {path}: tenants"
        tenants = {str(name): _rates(entry, default, f"{where}.{name}") for name, entry in entries.items()}
        return cls(default, tenants, redis_url)

    def priority(self, tenant: str) -> int:
        """The most urgent priority that a tenant's requests may have."""
        return self._of(tenant).priority

    def _of(self, tenant: str) -> Rates:
        return self._tenants.get(tenant, self._default)

    async def request(self, tenant: str) -> None:
        """Counts a request.

        Raises:
            RateLimitError: when the tenant has used up its requests.
        """
        await self._hit(tenant, "requests", self._of(tenant).requests, 1)

    async def tokens(self, tenant: str, count: int) -> None:
        """Counts tokens.

        Raises:
            RateLimitError: when the tenant has used up its tokens.
        """
        await self._hit(tenant, "tokens", self._of(tenant).tokens, max(count, 1))

    def give_back(self, tenant: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Takes back what was counted and not used: the tenant's next calls to this router count so much less."""
        rates = self._of(tenant)
        for what, rate, count in (("requests", rates.requests, requests), ("tokens", rates.tokens, tokens)):
            if rate is not None and count > 0:
                held = min(self._credit(what, tenant) + count, rate.amount)
                self._credits[what, tenant] = held, time.monotonic() + rate.get_expiry()

    def _credit(self, what: str, tenant: str) -> int:
        return self._credits.get((what, tenant), (0, 0.0))[0]

    def _use_credit(self, what: str, tenant: str, cost: int) -> int:
        """How much of ``cost`` was paid before."""
        used = min(self._credit(what, tenant), cost)
        if used:
            held, until = self._credits[what, tenant]
            self._credits[what, tenant] = held - used, until
        return used

    async def close(self) -> None:
        """Closes the connections to the store."""
        if self._shared is not None:
            storage: Any = self._shared.storage
            await close(storage.bridge.storage)

    async def _hit(self, tenant: str, what: str, rate: RateLimitItem | None, cost: int) -> None:
        if rate is None:
            return
        paid = self._use_credit(what, tenant, cost)
        if paid == cost:
            return
        limiter, allowed, whole, cost = self._local, None, cost, cost - paid
        if self._shared is not None and time.monotonic() > self._away_until:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    allowed = await self._shared.hit(rate, what, tenant, cost=cost)
                limiter = self._shared
            except (StorageError, TimeoutError, OSError) as error:
                log.warning("tenant limits are counted by this router alone for now: %s", error or "no answer in time")
                self._away_until = time.monotonic() + _AWAY_SECONDS
        if allowed is None:
            allowed = await self._local.hit(rate, what, tenant, cost=cost)
        if not allowed:
            self.give_back(tenant, **{what: paid})
            name = f"tenant {tenant!r}" if tenant else "requests without a tenant"
            if whole > rate.amount:
                problem = f"this request counts {whole}: it can never be taken"
                raise RateLimitError(f"{name}: the limit is {rate.amount} {what} {_per(rate)}; {problem}")
            wait = await self._wait(limiter, rate, what, tenant)
            problem = f"{name} used up its {rate.amount} {what} {_per(rate)}; try again in {wait:.1f} s"
            raise RateLimitError(problem, retry_after=wait)

    async def _wait(
        self, limiter: SlidingWindowCounterRateLimiter, rate: RateLimitItem, what: str, tenant: str
    ) -> float:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                stats = await limiter.get_window_stats(rate, what, tenant)
        except (StorageError, TimeoutError, OSError):
            return 1.0
        return min(max(stats.reset_time - time.time(), 0.1), float(rate.get_expiry()))


def _per(rate: RateLimitItem) -> str:
    return f"per {rate.multiples} {rate.GRANULARITY.name}s" if rate.multiples > 1 else f"per {rate.GRANULARITY.name}"


def _rates(entry: object, default: Rates, where: str) -> Rates:
    if not isinstance(entry, dict) or not entry.keys() <= {"requests", "tokens", "priority"}:
        problem = "must have requests and tokens, such as 100/second, and priority, and no other field"
        raise ConfigurationError(f"{where}: {problem}")
    priority = entry.get("priority", default.priority)
    if not isinstance(priority, int) or not 0 <= priority <= MAX_PRIORITY:
        raise ConfigurationError(f"{where}.priority: must be from 0 to {MAX_PRIORITY}, not {priority!r}")
    found: dict[str, RateLimitItem | None] = {"requests": default.requests, "tokens": default.tokens}
    for name, text in entry.items():
        if name == "priority":
            continue
        try:
            found[name] = parse(str(text))
        except ValueError as error:
            raise ConfigurationError(f"{where}.{name}: must be such as 100/second, not {text!r}") from error
    return Rates(**found, priority=priority)


def _storage(redis_url: str) -> Storage:
    """The library's storage for one of our store URLs."""
    scheme, _, rest = quoted(redis_url).partition("://")
    options: dict[str, Any] = {"implementation": "redispy", "key_prefix": "sparsity:limits", "wrap_exceptions": True}
    made = storage_from_string(f"async+{scheme}://{rest}", **options)
    assert isinstance(made, Storage)
    return made
