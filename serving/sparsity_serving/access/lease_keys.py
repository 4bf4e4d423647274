"""The keys of leases, which routers and workers share: a file holds one, or several by their ids.

    # routers sign with the first, workers take all
    2026-12: 4mQ...
    2026-11: x0T...

A file of anything else is one key without an id. To change keys without a refused request, give the next one as the
second everywhere, then make it the first everywhere, then leave the last one out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError, LeaseError

MIN_BYTES: Final = 16
_OPTION = "--lease-key-file"
_NAMED = re.compile(rb"([A-Za-z0-9._-]{1,64}):[ \t]+(\S+)\s*")


class LeaseKey(NamedTuple):
    """A secret, and what it is called; empty where it has no name."""

    id: str
    secret: bytes


class LeaseKeys:
    """Keys that may change at any time.

    Args:
        keys: that hold; the first signs.
    """

    def __init__(self, *keys: LeaseKey) -> None:
        self._keys = keys

    @classmethod
    def load(cls, path: Path | None) -> LeaseKeys | None:
        """From a file, or from SPARSITY_LEASE_KEY; None where neither is given.

        Raises:
            ConfigurationError: when the file cannot be read, or a key in it cannot be used.
        """
        if path is None and not os.environ.get("SPARSITY_LEASE_KEY"):
            return None
        return cls(*read_keys(path))

    def adopt(self, keys: tuple[LeaseKey, ...]) -> None:
        """Holds these from now on."""
        self._keys = keys

    @property
    def signing(self) -> LeaseKey:
        """The key of fresh leases."""
        return self._keys[0]

    def checking(self, key_id: str) -> tuple[bytes, ...]:
        """The secrets that a lease may be signed with that names ``key_id``.

        A key without a name checks every lease, and a lease without one may be of any key: names come one side first.

        Raises:
            LeaseError: when there are none.
        """
        found = tuple(key.secret for key in self._keys if not key_id or key.id in (key_id, ""))
        if not found:
            held = ", ".join(key.id for key in self._keys)
            raise LeaseError(f"lease: is signed with the key {key_id[:64]!r}; this worker has {held}")
        return found


def read_keys(path: Path | None) -> tuple[LeaseKey, ...]:
    """The keys in a file, or without one in SPARSITY_LEASE_KEY.

    Raises:
        ConfigurationError: when there are none, or one cannot be used.
    """
    try:
        data = path.read_bytes().strip() if path else os.environ.get("SPARSITY_LEASE_KEY", "").encode()
    except OSError as error:
        raise ConfigurationError(f"{_OPTION}: {path}: {error.strerror}") from error
    lines = [line.strip() for line in data.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    named = [found for line in lines if (found := _NAMED.fullmatch(line))]
    if not named:
        return (_checked(LeaseKey("", data)),)
    if len(named) < len(lines):
        raise ConfigurationError(f"{_OPTION}: every line must be `ID: KEY`, as {len(named)} of {len(lines)} are")
    keys = tuple(_checked(LeaseKey(found[1].decode(), found[2])) for found in named)
    if len({key.id for key in keys}) < len(keys):
        raise ConfigurationError(f"{_OPTION}: every key must have an id of its own")
    return keys


def _checked(key: LeaseKey) -> LeaseKey:
    if len(key.secret) < MIN_BYTES:
        which = f"the key {key.id!r}" if key.id else "the key"
        raise ConfigurationError(f"{_OPTION}: {which} has {len(key.secret)} bytes; {MIN_BYTES} are the least")
    return key
