"""Addresses as options and clients write them: `host:port`, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

from sparsity.errors import ConfigurationError

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
