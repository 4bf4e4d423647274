"""Clients that speak the messages of `sparsity.v1` themselves, for tools that show or vary them."""

from sparsity_client.wire.aio import AsyncWireClient
from sparsity_client.wire.blocking import WireClient
from sparsity_client.wire.requests import Prompt, make_request, user_turn

__all__ = ["AsyncWireClient", "Prompt", "WireClient", "make_request", "user_turn"]
