"""Request and token rates of tenants, counted in the policy store's Redis over all routers; locally while it is away.

    default: {requests: 100/second, tokens: 2000000/minute}
    tenants:
      acme: {requests: 10/second, priority: 5}   # what it does not say is the default's

A request that claims more than its tenant's ``priority`` (0 to 9, the default) gets that.

Counted by sliding windows (the `limits` library). A request counts as one for each answer that it asks for, and its
prompt tokens, as far as they are known, with the tokens that it may generate; once it has ended, what it did not use is
taken off the tenant's next calls to this router. Of a direct stream it is the worker that tells.
The file is taken up anew when it changes (:mod:`sparsity_serving.background.reloading`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cachetools import TLRUCache
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from sparsity_policies.storage.asking import Asking
from sparsity_policies.storage.connection import close, connect
from sparsity_policies.storage.redis_faults import CLIENT_ERRORS
from sparsity_rpc.errors import ConfigurationError, RateLimitError
from sparsity_serving.access.options_file import read_options_file
from sparsity_serving.bounds import MAX_PRIORITY

log = logging.getLogger("sparsity.router.limits")
_ANSWER_SECONDS = 0.05
_STORE_SECONDS = 2.0
# After a failure the store is left alone for this long.
_AWAY_SECONDS = 1.0
_MOST_CREDITS = 10_000
# Windows of a rate that a tenant may owe: who says wrongly that it fell back pays, and nobody is kept out for ever.
_MOST_OWED = 10
# What the store's scripts count exactly, and what is still a time.
_MOST_AMOUNT, _MOST_SECONDS = 10**15, 366 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a tenant; None is no limit. ``priority`` is the first that it may claim."""

    requests: RateLimitItem | None = None
    tokens: RateLimitItem | None = None
    priority: int = MAX_PRIORITY


class TenantRates(NamedTuple):
    """What a file says: the rates of tenants, and of those without their own."""

    default: Rates
    tenants: Mapping[str, Rates]


def read_rates(path: Path) -> TenantRates:
    """Reads a file.

    Raises:
        ConfigurationError: naming the file and the entry.
    """
    document = read_options_file("--tenant-limits", path)
    if not isinstance(document, dict) or not document.keys() <= {"default", "tenants"}:
        raise ConfigurationError(f"--tenant-limits: {path}: must have `default` and `tenants`, and no other field")
    default = _of_entry(document.get("default", {}), Rates(), f"--tenant-limits: {path}: default")
    entries = document.get("tenants", {})
    if not isinstance(entries, dict):
        raise ConfigurationError(f"--tenant-limits: {path}: tenants: must map names to rates")
    where = f"--tenant-limits: {path}: tenants"
    tenants = {str(name): _of_entry(entry, default, f"{where}.{name}") for name, entry in entries.items()}
    return TenantRates(default, tenants)


class TenantLimits:
    """Counts what tenants use.

    Args:
        rates: by tenant.
        redis_url: where routers count together; None counts in this process.
    """

    def __init__(self, rates: TenantRates, redis_url: str | None) -> None:
        self._rates = rates
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        store = _StoreStorage(connect(redis_url, _STORE_SECONDS)) if redis_url else None
        self._shared = SlidingWindowCounterRateLimiter(store) if store else None
        self._asking = Asking()
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
        return None if path is None else cls(read_rates(path), redis_url)

    def adopt(self, rates: TenantRates) -> None:
        """Goes by other rates from the next call on; what was counted stays counted."""
        self._rates = rates

    def priority(self, tenant: str) -> int:
        """The most urgent priority that a tenant's requests may have."""
        return self._of(tenant).priority

    def most_tokens(self, tenant: str) -> int | None:
        """Tokens that any request of a tenant may come to; None where nothing bounds them."""
        rate = self._of(tenant).tokens
        return None if rate is None else rate.amount

    def _of(self, tenant: str) -> Rates:
        return self._rates.tenants.get(tenant, self._rates.default)

    async def request(self, tenant: str, answers: int = 1) -> None:
        """Counts a request, as one for each answer that it asks for.

        Raises:
            RateLimitError: when the tenant has used up its requests.
        """
        await self._hit(tenant, "requests", self._of(tenant).requests, answers)

    async def tokens(self, tenant: str, count: int) -> None:
        """Counts tokens.

        Raises:
            RateLimitError: when the tenant has used up its tokens.
        """
        await self._hit(tenant, "tokens", self._of(tenant).tokens, max(count, 1))

    def give_back(self, tenant: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Takes back what was counted and not used: the tenant's next calls to this router count so much less.

        Below 0 it is what was used and not counted, and they count so much more, up to ten times the rate in all.
        """
        rates = self._of(tenant)
        for what, rate, count in (("requests", rates.requests, requests), ("tokens", rates.tokens, tokens)):
            # At none at all nothing was counted, and nobody owes.
            if rate is not None and rate.amount and count:
                held = max(min(self._credit(what, tenant) + count, rate.amount), -_MOST_OWED * rate.amount)
                # A whole window is counted at once only when the one before has passed, too.
                windows = 1 + 2 * (max(-held, 0) // rate.amount)
                self._credits[what, tenant] = held, time.monotonic() + windows * rate.get_expiry()

    def _credit(self, what: str, tenant: str) -> int:
        return self._credits.get((what, tenant), (0, 0.0))[0]

    def _use_credit(self, what: str, tenant: str, cost: int, most: int) -> int:
        """How much of ``cost`` was paid before; below 0 it is owed, and with it a call counts ``most`` at most.

        What was paid at a higher rate is worth ``most`` at this one.
        """
        used = max(min(self._credit(what, tenant), cost, most), min(cost - most, 0))
        if used:
            held, until = self._credits[what, tenant]
            self._credits[what, tenant] = held - used, until
        return used

    async def close(self) -> None:
        """Closes the connections to the store."""
        await self._asking.close()
        if self._shared is not None:
            storage: Any = self._shared.storage
            await close(storage.bridge.storage)

    async def _hit(self, tenant: str, what: str, rate: RateLimitItem | None, cost: int) -> None:
        if rate is None:
            return
        paid = self._use_credit(what, tenant, cost, rate.amount)
        if paid == cost:
            return
        limiter, allowed, whole, cost = self._local, None, cost, cost - paid
        if self._shared is not None and time.monotonic() > self._away_until:
            try:
                allowed = await self._asking.answer(self._shared.hit(rate, what, tenant, cost=cost), _ANSWER_SECONDS)
                limiter = self._shared
            except (StorageError, TimeoutError, OSError) as error:
                log.warning("tenant limits are counted by this router alone for now: %s", error or "no answer in time")
                self._away_until = time.monotonic() + _AWAY_SECONDS
        if allowed is None:
            allowed = await self._local.hit(rate, what, tenant, cost=cost)
        if not allowed:
            self.give_back(tenant, **{what: paid})
            name = f"tenant {tenant!r}" if tenant else "requests without a tenant"
            limit = f"{rate.amount} {what} {_per(rate)}"
            if whole > rate.amount:
                problem = f"{name}: the limit is {limit}; this request counts {whole}: it can never be taken"
                raise RateLimitError(problem).about({"limit": limit})
            wait = await self._wait(limiter, rate, what, tenant)
            problem = f"{name} used up its {limit}; try again in {wait:.1f} s"
            raise RateLimitError(problem, retry_after=wait).about({"limit": limit})

    async def _wait(
        self, limiter: SlidingWindowCounterRateLimiter, rate: RateLimitItem, what: str, tenant: str
    ) -> float:
        try:
            stats = await self._asking.answer(limiter.get_window_stats(rate, what, tenant), _ANSWER_SECONDS)
        except (StorageError, TimeoutError, OSError):
            return 1.0
        return min(max(stats.reset_time - time.time(), 0.1), float(rate.get_expiry()))


def _per(rate: RateLimitItem) -> str:
    return f"per {rate.multiples} {rate.GRANULARITY.name}s" if rate.multiples > 1 else f"per {rate.GRANULARITY.name}"


def _of_entry(entry: object, default: Rates, where: str) -> Rates:
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
            rate = parse(str(text))
        except ValueError as error:
            raise ConfigurationError(f"{where}.{name}: must be such as 100/second, not {text!r}") from error
        if rate.amount > _MOST_AMOUNT or rate.get_expiry() > _MOST_SECONDS:
            raise ConfigurationError(f"{where}.{name}: must be {_MOST_AMOUNT} or less, in a year or less")
        found[name] = rate
    return Rates(**found, priority=priority)


class _StoreStorage(RedisStorage):
    """The library's counters behind a client of ours, which knows every kind of store URL."""

    # Not one for URLs.
    STORAGE_SCHEME = []  # noqa: RUF012

    def __init__(self, client: Any) -> None:
        self._client = client
        # Nothing is ever sent to the place of this URL.
        super().__init__("async+redis://", wrap_exceptions=True, implementation="redispy", key_prefix="sparsity:limits")

    def configure_bridge(self) -> None:
        """Puts the client where the library keeps its own."""
        bridge: Any = self.bridge
        bridge.storage, bridge.connection_getter = self._client, lambda _: self._client

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """What becomes a StorageError."""
        return CLIENT_ERRORS
