"""How the commands reach a router: TLS and key by the environment."""

from __future__ import annotations

import getpass
import os

import grpc
from sparsity_client.wire import WireClient
from sparsity_rpc.tls import ClientTls, open_channel


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Who calls, and the key of SPARSITY_KEY."""
    actor = (("sparsity-actor", _user()),)
    key = os.environ.get("SPARSITY_KEY")
    return (*actor, ("authorization", f"Bearer {key}")) if key else actor


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container the user often has a number and no name.
        return f"uid-{os.getuid()}"


def channel_to(router: str) -> grpc.Channel:
    """A channel to ``router``."""
    return open_channel(router, ClientTls.from_environment())


def client_of(router: str) -> WireClient:
    """A client of ``router``."""
    return WireClient(router, tls=ClientTls.from_environment(), key=os.environ.get("SPARSITY_KEY"))
