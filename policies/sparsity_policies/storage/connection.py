"""A client for every way to run Redis: one server, Sentinel, or Cluster, by the URL's scheme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from sparsity_rpc.errors import ConfigurationError, StoreError

_SENTINEL_PORT = 26379
_CLUSTER_PORT = 6379
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns the library's errors into StoreError."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreError(f"policy store: {type(error).__name__}: {error}") from error


def connect(url: str, timeout: float) -> Any:
    """A client of the server behind ``url``; nothing is sent yet.

    `redis://host:port/db`, `rediss://` (TLS), `unix://path`, `redis+sentinel://host:port,host:port/master/db` and
    `redis+cluster://host:port,host:port`; all but `unix` take `user:password@`, up to the last `@` before any `?`.

    Raises:
        ConfigurationError: when the URL cannot be used.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        # Bytes that are no text become a document that cannot be read, and is told as such.
        "encoding_errors": "replace",
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }
    retry = Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=2)
    scheme = url.partition("://")[0]
    url = quoted(url)
    try:
        if "ssl" in parse_qs(urlsplit(url).query, keep_blank_values=True):
            # What is not heeded would be a connection in plain text.
            raise ValueError("asks for TLS by `ssl`; begin it with rediss:// instead")
        if scheme == "redis+sentinel":
            return _sentinel(url, options | {"retry": retry})
        if scheme == "redis+cluster":
            return _cluster(url, options)
        if scheme not in SCHEMES:
            raise ValueError(f"must begin with one of {', '.join(f'{known}://' for known in SCHEMES)}")
        return redis.Redis.from_url(url, retry=retry, **options)
    except ValueError as error:
        raise ConfigurationError(f"redis url: {error}") from error


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    scheme, mark, rest = url.partition("://")
    # Options may hold a password, too.
    place = rest.partition("?")[0]
    return f"{scheme}{mark}{place if scheme == 'unix' else place.rpartition('@')[2]}"


def quoted(url: str) -> str:
    """The URL with its user and password so written that no letter in them ends them."""
    scheme, mark, rest = url.partition("://")
    place, question, options = rest.partition("?")
    credentials, at, where = place.rpartition("@")
    if scheme == "unix" or not at:
        return url
    user, colon, password = (quote(unquote(part), safe="") for part in credentials.partition(":"))
    return f"{scheme}{mark}{user}{unquote(colon)}{password}{at}{where}{question}{options}"


async def close(client: Any) -> None:
    """Closes a client, and the sentinels it asks."""
    pool = getattr(client, "connection_pool", None)
    for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
        await sentinel.aclose()
    await client.aclose()


def _sentinel(url: str, options: dict[str, Any]) -> Any:
    hosts, credentials, path = _parts(url, _SENTINEL_PORT)
    name, _, database = path.partition("/")
    if not name:
        raise ValueError("names no master; write redis+sentinel://host:port/master")
    if database and not database.isdigit():
        raise ValueError(f"has no number after the master's name but {database!r}")
    quick = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout")}
    sentinel: Any = Sentinel(hosts, sentinel_kwargs=quick, **options, **credentials)  # type: ignore[no-untyped-call]
    return sentinel.master_for(name, db=int(database or 0))


def _cluster(url: str, options: dict[str, Any]) -> Any:
    hosts, credentials, _ = _parts(url, _CLUSTER_PORT)
    nodes = [ClusterNode(host, port) for host, port in hosts]
    return RedisCluster(startup_nodes=nodes, **(options | credentials))


def _parts(url: str, port: int) -> tuple[list[tuple[str, int]], dict[str, str], str]:
    """Hosts, credentials and path of a URL with several hosts."""
    parsed = urlsplit(url)
    user, _, hosts = parsed.netloc.rpartition("@")
    found = []
    for entry in hosts.split(","):
        host, colon, digits = entry.rpartition(":")
        if not colon:
            host, digits = entry, str(port)
        if not host or not digits.isdigit():
            raise ValueError(f"has no host:port but {entry!r}")
        found.append((host.strip("[]"), int(digits)))
    name, _, password = user.partition(":")
    credentials = {"username": unquote(name), "password": unquote(password)}
    return found, {key: value for key, value in credentials.items() if value}, parsed.path.strip("/")
