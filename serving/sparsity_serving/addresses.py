"""Addresses as options and clients write them: `host:port`, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from pathlib import Path
from typing import Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError

# Where a router listens, and where callers look for it, unless they are told.
ROUTER: Final = "127.0.0.1:7000"
FORM: Final = "host:port, an IPv6 address in brackets as in [::1]:7000"
_GIVEN: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Below are those of well-known services, and those that tests hold.
_LEAST_PORT: Final = 20_000
_TRIES: Final = 50
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[^\]]+)?)\]|(?P<host>[^\[\]:/\s]+)):(?P<port>\d{1,5})")


class Address(NamedTuple):
    """Where something listens, or is reached; the host without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return joined(self.host, self.port)

    @property
    def family(self) -> socket.AddressFamily:
        """Of a socket that is bound to it."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def joined(host: str, port: int) -> str:
    """`host:port`, in brackets what has colons of its own."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_address(text: str, option: str) -> Address:
    """The address that ``option`` gives.

    Raises:
        ConfigurationError: naming the option and the form.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ConfigurationError(f"{option}: must be {FORM}, not {text!r}")
    return Address(found["six"] or found["host"], int(found["port"]))


def free_port() -> int:
    """A port of the loopback that nothing listens on now, and that the system gives to nobody by itself.

    What is to listen there may take minutes to come to it: a port of the system's range may be some connection's then.
    """
    own = range(_LEAST_PORT, _least_given())
    for port in random.sample(own, min(_TRIES, len(own))):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    with socket.create_server(("127.0.0.1", 0)) as probe:
        given: int = probe.getsockname()[1]
        return given


def _least_given() -> int:
    """The least port that the system gives by itself (ip(7), ip_local_port_range)."""
    try:
        return int(_GIVEN.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return _LEAST_PORT


def require_free(address: str, option: str = "--listen", *, any_port: bool = True) -> None:
    """Tells early, before anything slow is started, that ``address``, given by ``option``, cannot be listened on.

    With ``any_port`` port 0 takes a free one; without it nobody would know which.

    Raises:
        ConfigurationError: naming the address and the remedy.
    """
    place = read_address(address, option)
    if not place.port and not any_port:
        raise ConfigurationError(f"{option}: must be {FORM}, and no port 0, not {address!r}")
    try:
        with socket.create_server(tuple(place), family=place.family):
            return
    except OSError as error:
        free = ", or port 0 for a free one" if any_port else ""
        problem = f"{option}: cannot listen on {address} ({error.strerror}); choose another port{free}"
        raise ConfigurationError(problem) from error
