"""Certificates and passwords of Redis servers for tests, and how servers and URLs are told of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme

PASSWORD = "d/t@:?#%pw"
SENTINEL_PASSWORD = "s/n@:?#%pw"


@dataclass(frozen=True)
class Security:
    """What servers demand: TLS with certificates of clients, a password, and another one at Sentinels.

    Attributes:
        ca: PEM file of the authority of both sides; ``other_ca`` signed nothing here.
        cert, key: of servers and clients alike.
    """

    ca: Path
    other_ca: Path
    cert: Path
    key: Path
    password: str = PASSWORD
    sentinel_password: str = SENTINEL_PASSWORD

    @classmethod
    def make(cls, folder: Path, names: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")) -> Security:
        authority, other = trustme.CA(), trustme.CA()
        issued = authority.issue_cert(*names)
        made = cls(*(folder / f"{name}.pem" for name in ("ca", "other", "cert", "key")))
        authority.cert_pem.write_to_path(str(made.ca))
        other.cert_pem.write_to_path(str(made.other_ca))
        issued.cert_chain_pems[0].write_to_path(str(made.cert))
        issued.private_key_pem.write_to_path(str(made.key))
        return made

    def lines(self, port: int, *, sentinel: bool = False) -> dict[str, str]:
        """The server's configuration."""
        tls = {"tls-cert-file": self.cert, "tls-key-file": self.key, "tls-ca-cert-file": self.ca}
        own = {"port": "0", "tls-port": str(port), "tls-replication": "yes", "tls-auth-clients": "yes"}
        own |= {name: str(path) for name, path in tls.items()}
        if sentinel:
            return own | {"requirepass": f'"{self.sentinel_password}"'}
        return own | {"requirepass": self.password, "masterauth": self.password}

    def client(self, password: str) -> dict[str, Any]:
        """Options of the blocking client."""
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
        return {
            "ssl": True,
            "ssl_check_hostname": False,
            "password": password,
            **{name: str(path) for name, path in files.items()},
        }

    def with_passwords(self, password: str, sentinel_password: str = SENTINEL_PASSWORD) -> Security:
        return replace(self, password=password, sentinel_password=sentinel_password)

    def url(self, scheme: str, hosts: str, path: str = "", **changed: object) -> str:
        """A URL with all of it; ``changed`` takes the place of options, and None leaves one out."""
        options: dict[str, object] = {
            "ssl_ca_certs": self.ca,
            "ssl_certfile": self.cert,
            "ssl_keyfile": self.key,
            "sentinel_password": self.sentinel_password if "sentinel" in scheme else None,
        }
        pairs = {name: value for name, value in (options | changed).items() if value is not None}
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in pairs.items())
        return f"{scheme}://:{quote(self.password, safe='/')}@{hosts}{path}?{query}"
