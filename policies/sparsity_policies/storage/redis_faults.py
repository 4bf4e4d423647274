"""What an error of the Redis client means, and which option mends it."""

from __future__ import annotations

import re

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

# All that the client raises: of a Cluster that cannot be reached it says so by an exception outside of its own tree.
CLIENT_ERRORS = (RedisError, RedisClusterException, OSError, TimeoutError)

_LOGIN = ("invalid username-password pair", "invalid password", "Authentication required", "HELLO must be called")
_MENDED_BY = {
    "Hostname mismatch": "the certificate names another host: write that in the URL, or add ssl_check_hostname=false",
    "IP address mismatch": "the certificate does not name this address: add ssl_check_hostname=false to the URL",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is of no authority that is trusted here: give that by --redis-ca",
    "CERTIFICATE_REQUIRED": "it demands a certificate of clients: give --redis-cert and --redis-key",
    "HANDSHAKE_FAILURE": "it may demand a certificate of clients: give --redis-cert and --redis-key",
    "UNKNOWN_CA": "it does not trust the authority of --redis-cert",
    "BAD_CERTIFICATE": "it does not take the certificate of --redis-cert",
    "WRONG_VERSION_NUMBER": "it speaks plain text: begin the URL with redis instead of rediss",
    "Connect call failed": "start it, or correct --redis-url",
    "Name or service not known": "correct the host in --redis-url",
}


def told(error: BaseException, encrypted: bool | None = None) -> str:
    """The error in a line, with its remedy where an option mends it; ``encrypted`` says whether TLS was tried."""
    text = str(error)
    remedy = _remedy(error, text, encrypted)
    if "HELLO must be called" in text:
        text = re.sub(r"HELLO must be called.*? at the same time", "Authentication required.", text)
    return f"{type(error).__name__}: {text}" + (f"; {remedy}" if remedy else "")


def _remedy(error: BaseException, text: str, encrypted: bool | None) -> str:
    at_sentinels = isinstance(error, MasterNotFoundError)
    if any(words in text for words in _LOGIN):
        if at_sentinels:
            return "a Sentinel has a login of its own: give SPARSITY_REDIS_SENTINEL_PASSWORD (and _USERNAME for a user)"
        return "give the right SPARSITY_REDIS_PASSWORD (and _USERNAME for a user), or user:password@ in --redis-url"
    for words, remedy in _MENDED_BY.items():
        if words in text:
            return remedy
    if at_sentinels and ": " not in text:
        return "the Sentinels answer, and know no such master that is up: correct its name in --redis-url"
    if encrypted is not None and ("reset by peer" in text or "Connection closed" in text):
        if encrypted:
            return "if it demands a certificate of clients, give --redis-cert and --redis-key"
        return "if it speaks TLS, begin the URL with rediss instead of redis"
    if encrypted and isinstance(error, (RedisTimeoutError, TimeoutError)) and "connecting" in text:
        return "if it is up and speaks plain text, begin the URL with redis instead of rediss"
    return ""
