"""A router in this process for tests of faults, over workers that it uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import UnavailableError
from support.routers.router import Router, running, until
from support.stores.valkey import Valkey
from support.tiny import CONTEXT, tiny_model


@asynccontextmanager
async def router_over(
    folder: Path,
    *places: str,
    redis_url: str | None = None,
    detect: str = "off",
    context: int = CONTEXT,
    **options: Any,
) -> AsyncIterator[Router]:
    """A router in this process, once it uses every worker."""
    async with AsyncExitStack() as stack:
        url = redis_url or stack.enter_context(Valkey()).url
        config = RouterConfig(tiny_model(folder / "model", context), places, url, "127.0.0.1:0", **options)
        router = await stack.enter_async_context(running(config, detect=detect))
        async with AsyncWireClient(router.address) as client:

            async def used() -> bool:
                try:
                    return bool([1 async for _ in client.generate(make_request("hi", domain="rag"), 5.0)])
                except UnavailableError:
                    return False

            await until(used)
        # Every worker's first report is half a second away at most.
        await asyncio.sleep(0.6)
        yield router


async def text_of(router: Router, **options: Any) -> str:
    async with AsyncWireClient(router.address) as client:
        stream = client.generate(make_request("hi", domain="rag"), options.pop("timeout", 15.0), **options)
        return "".join([response.text async for response in stream])
