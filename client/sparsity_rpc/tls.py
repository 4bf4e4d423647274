"""TLS at both ends of a channel, from PEM files; a server takes up renewed files without a restart."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc

from sparsity_rpc.channels import MESSAGE_SIZE, NO_PROXY
from sparsity_rpc.errors import ConfigurationError

Options = Sequence[tuple[str, Any]]


def _read(option: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option}: {path}: {error.strerror}") from error
    if b"-----BEGIN" not in data:
        raise ConfigurationError(f"{option}: {path} is not a PEM file")
    return data


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server proves itself with.

    Attributes:
        cert: its certificate chain.
        key: its private key.
        client_ca: authorities of client certificates; with it, clients without one are refused (mutual TLS).
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files: a handshake after a change sees what is there then.

        Raises:
            ConfigurationError: when a file cannot be read.
        """
        stamps = [self._stamps()]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            try:
                now = self._stamps()
                if now == stamps[0]:
                    return None
                fresh = self._configuration()
            except (OSError, ConfigurationError):
                # A file in the middle of its replacement: the old one holds until the next handshake.
                return None
            stamps[0] = now
            return fresh

        demand = self.client_ca is not None
        fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], renewed)
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, require_client_authentication=demand)

    def context(self) -> ssl.SSLContext:
        """The same for servers that take the standard library's contexts: a handshake after a change sees it, too.

        Raises:
            ConfigurationError: when a file cannot be read or used.
        """
        stamps, fresh = self._stamps(), self._context()

        def renewed(connection: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            nonlocal stamps, fresh
            # A file in the middle of its replacement: the old one holds until the next handshake.
            with suppress(OSError, ConfigurationError):
                if (now := self._stamps()) != stamps:
                    stamps, fresh = now, self._context()
            connection.context = fresh

        context = self._context()
        context.sni_callback = renewed
        return context

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            files = ", ".join(str(file) for file in (self.cert, self.key, self.client_ca) if file)
            raise ConfigurationError(f"--tls-cert, --tls-key, --tls-client-ca: {files}: {error}") from error
        return context

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (_read("--tls-key", self.key), _read("--tls-cert", self.cert))
        roots = _read("--tls-client-ca", self.client_ca) if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def _stamps(self) -> tuple[int, ...]:
        files = (self.cert, self.key, self.client_ca)
        try:
            return tuple(file.stat().st_mtime_ns for file in files if file)
        except OSError as error:
            raise ConfigurationError(f"--tls-cert: {error.filename}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client trusts, and proves itself with.

    Attributes:
        ca: authorities of server certificates; None takes the system's.
        cert: the client's certificate chain, for mutual TLS.
        key: its private key.
        server_name: what server certificates must name, where servers are reached by bare addresses; None takes the
            target's host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    @classmethod
    def from_environment(cls) -> ClientTls | None:
        """By SPARSITY_TLS_CA, SPARSITY_TLS_CERT and SPARSITY_TLS_KEY; SPARSITY_TLS=1 takes the system's authorities.

        None without any of them. SPARSITY_TLS_SERVER_NAME is what the certificates must name.
        """
        paths = [os.environ.get(f"SPARSITY_TLS_{name}") for name in ("CA", "CERT", "KEY")]
        if not any(paths) and os.environ.get("SPARSITY_TLS", "") not in ("1", "true"):
            return None
        ca, cert, key = (Path(path) if path else None for path in paths)
        return cls(ca, cert, key, os.environ.get("SPARSITY_TLS_SERVER_NAME") or None)

    def options(self) -> Options:
        """Channel options that go with the credentials."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for a channel.

        Raises:
            ConfigurationError: when a file cannot be read, or a certificate has no key.
        """
        if (self.cert is None) is not (self.key is None):
            raise ConfigurationError("a client certificate and its key: give both")
        return grpc.ssl_channel_credentials(
            _read("CA", self.ca) if self.ca else None,
            _read("key", self.key) if self.key else None,
            _read("certificate", self.cert) if self.cert else None,
        )


def open_channel(target: str, tls: ClientTls | None, options: Options = MESSAGE_SIZE) -> grpc.Channel:
    """A blocking channel; without ``tls`` it is plain text."""
    if tls is None:
        return grpc.insecure_channel(target, options=(*options, *NO_PROXY))
    return grpc.secure_channel(target, tls.credentials(), options=(*options, *NO_PROXY, *tls.options()))


def open_aio_channel(target: str, tls: ClientTls | None, options: Options = MESSAGE_SIZE) -> grpc.aio.Channel:
    """An asyncio channel; without ``tls`` it is plain text."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=(*options, *NO_PROXY))
    return grpc.aio.secure_channel(target, tls.credentials(), options=(*options, *NO_PROXY, *tls.options()))
