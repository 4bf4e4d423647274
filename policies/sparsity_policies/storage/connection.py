"""A client for every way to run Redis: one server, Sentinel, or Cluster, by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sparsity_rpc.errors import StoreError

from sparsity_policies.storage.redis_faults import CLIENT_ERRORS, told
from sparsity_policies.storage.redis_tls import options as tls_options
from sparsity_policies.storage.redis_tls import secured_context, share_context
from sparsity_policies.storage.redis_url import Login, RedisUrl, read_url


@contextmanager
def store_errors(encrypted: bool | None = None) -> Iterator[None]:
    """Turns the library's errors into StoreError, which says what mends it; ``encrypted``: whether TLS was tried."""
    try:
        yield
    except CLIENT_ERRORS as error:
        raise StoreError(f"policy store: {told(error, encrypted)}") from error


def connect(url: str, timeout: float) -> Any:
    """A client of the server behind ``url`` (:mod:`sparsity_policies.storage.redis_url`); nothing is sent yet.

    Raises:
        ConfigurationError: when the URL, or a file that it names, cannot be used.
    """
    to = read_url(url)
    if to.tls is not None:
        secured_context(to.tls)
    client = _client(to, timeout)
    if to.tls is not None:
        share_context(client)
    return client


def _client(to: RedisUrl, timeout: float) -> Any:
    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **tls_options(to.tls)}
    # A Sentinel that does not answer is passed over for the next one.
    own = {"retry": Retry(NoBackoff(), retries=0), **options, **_login(to.sentinel_login)}
    options |= {
        "decode_responses": True,
        # Bytes that are no text become a document that cannot be read, and is told as such.
        "encoding_errors": "replace",
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=2),
        **_login(to.login),
    }
    if to.kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in to.hosts], **options)
    options["db"] = to.database
    if to.kind == "sentinel":
        sentinels: Any = _Sentinels(to.hosts, sentinel_kwargs=own, **options)  # type: ignore[no-untyped-call]
        return sentinels.master_for(to.master)
    if to.kind == "unix":
        return redis.Redis(unix_socket_path=to.path, **options)
    ((host, port),) = to.hosts
    return redis.Redis(host=host, port=port, **options)


async def close(client: Any) -> None:
    """Closes a client, and the sentinels it asks."""
    pool = getattr(client, "connection_pool", None)
    for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
        await sentinel.aclose()
    await client.aclose()


class _Sentinels(Sentinel):
    """Says what each Sentinel answered, where the library names its error's class only."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where the master is, by the first Sentinel that knows; that one is asked first from then on.

        Raises:
            MasterNotFoundError: when none knows; says what each answered.
        """
        failures = []
        for number, sentinel in enumerate(self.sentinels):
            try:
                masters: Any = await sentinel.sentinel_masters()
            except (RedisConnectionError, RedisTimeoutError) as error:
                known = sentinel.connection_pool.connection_kwargs
                failures.append(f"{known['host']}:{known['port']}: {type(error).__name__}: {error}")
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels[0], self.sentinels[number] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
        told = f"; {'; '.join(failures)}" if failures else ""
        raise MasterNotFoundError(f"no master {service_name!r} at {len(self.sentinels)} Sentinels{told}")


def _login(login: Login) -> dict[str, str]:
    return {name: value for name, value in (("username", login.username), ("password", login.password)) if value}
