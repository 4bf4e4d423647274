"""Addresses as options and clients write them: `host:port`, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError

# Where a router listens, and where callers look for it, unless they are told.
ROUTER: Final = "127.0.0.1:7000"
FORM: Final = "host:port, an IPv6 address in brackets as in [::1]:7000"
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
    """A port of the loopback that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


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
