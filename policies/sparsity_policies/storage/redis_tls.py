"""TLS of connections to a policy store: one context for all of them, made anew when a file of it changes.

The library makes a context for each connection, which reads the system's authorities: tens of milliseconds of a
router's event loop each time.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from sparsity_rpc.errors import ConfigurationError

from sparsity_policies.storage.redis_url import RedisTls


def secured_context(tls: RedisTls) -> ssl.SSLContext:
    """The context of these files as they are now.

    Raises:
        ConfigurationError: naming the file that cannot be used.
    """
    return _context(tls, tuple(map(_stamp, _files(tls).items())))


def options(tls: RedisTls | None) -> dict[str, Any]:
    """The library's options."""
    if tls is None:
        return {}
    files = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
    return {"ssl": True, "ssl_check_hostname": tls.check_names, **{name: path or None for name, path in files.items()}}


def share_context(client: Any) -> None:
    """Lets every connection that a client with TLS will open take the shared context."""
    if isinstance(client, RedisCluster):
        client.connection_kwargs["connection_class"] = _Secured
        client.nodes_manager.connection_kwargs["connection_class"] = _Secured
        for node in client.nodes_manager.startup_nodes.values():
            node.connection_class = _Secured
        return
    pool = client.connection_pool
    if sentinels := getattr(pool, "sentinel_manager", None):
        pool.connection_class = _SecuredByName
        for sentinel in sentinels.sentinels:
            share_context(sentinel)
    else:
        pool.connection_class = _Secured


class _Secured(SSLConnection):
    """A connection by the shared context."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        own = self.ssl_context
        tls = RedisTls(own.ca_certs or "", own.certfile or "", own.keyfile or "", own.check_hostname)
        return {**Connection._connection_arguments(self), "ssl": secured_context(tls)}


class _SecuredByName(SentinelManagedConnection, _Secured):
    """The same, to the server that Sentinels name."""


def _files(tls: RedisTls) -> dict[str, str]:
    named = {"--redis-ca": tls.ca, "--redis-cert": tls.cert, "--redis-key": tls.key}
    return {option: path for option, path in named.items() if path}


def _stamp(file: tuple[str, str]) -> int:
    option, path = file
    try:
        return Path(path).stat().st_mtime_ns
    except OSError as error:
        raise ConfigurationError(f"{option}: {path}: {error.strerror}") from error


@lru_cache(maxsize=4)
def _context(tls: RedisTls, stamps: tuple[int, ...]) -> ssl.SSLContext:
    problem = "is no PEM file that can be used"
    option, path = "--redis-ca", tls.ca
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
        option, path = "--redis-cert", tls.cert
        if tls.cert:
            problem += ", or does not fit --redis-key, or has a key under a password"
            # Without a password at hand the library would ask the terminal for one.
            context.load_cert_chain(tls.cert, tls.key, lambda: "")
    except ssl.SSLError as error:
        raise ConfigurationError(f"{option}: {path} {problem} ({error.reason})") from error
    except OSError as error:
        raise ConfigurationError(f"{option}: {path}: {error.strerror}") from error
    context.check_hostname = tls.check_names
    return context
