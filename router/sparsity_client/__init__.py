"""Clients of the router, for internal services.

    with Client("127.0.0.1:7000") as client:
        for response in client.generate(make_request(user_turn("Hello"), domain="support-chat")):
            print(response.text, end="")

`AsyncClient` is the same for asyncio. With ``direct=True`` the answer streams straight from the worker that the router
names, and through the router where that fails. Failed calls raise the errors of `sparsity.errors`.
"""

from sparsity_client.aio import AsyncClient
from sparsity_client.client import Client
from sparsity_client.requests import Prompt, make_request, user_turn

__all__ = ["AsyncClient", "Client", "Prompt", "make_request", "user_turn"]
