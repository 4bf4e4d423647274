"""A whole router with an HTTP door over fake workers, in the test's process, and clients of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from sparsity_router.config import RouterConfig
from support.ports import free_port
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, MODERATE
from support.routers.router import Router, running, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

MODEL = "tiny"


@dataclass
class HttpDoor:
    """The door, its router and its workers; ``key`` goes with every request of the clients."""

    url: str
    model: str
    router: Router
    workers: list[FakeWorker]
    key: str
    session: httpx.AsyncClient

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        options = {"api_key": self.key, "base_url": f"{self.url}/v1", "max_retries": 0, "timeout": 20.0, **options}
        return openai.AsyncOpenAI(**options)

    async def post(self, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        return await self.session.post(self.url + path, **options)

    async def chat(self, content: str = "hi", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **fields}
        own = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        # Half a pair of surrogates is escaped, as it may come.
        return await self.post(content=json.dumps(body), headers=own | (headers or {}))

    async def raw(self, data: bytes) -> bytes:
        """What comes back for bytes, until the door closes or says nothing for two seconds."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        found = b""
        try:
            async with asyncio.timeout(2.0):
                while piece := await reader.read(65536):
                    found += piece
        except TimeoutError:
            pass
        writer.close()
        return found


def events(text: str) -> list[Any]:
    """What the events of a stream say; the last is text."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(each) if each.startswith("{") else each for each in found]


@asynccontextmanager
async def http_door(
    folder: Path, *workers: FakeWorker, key: str = "any-key", **options: Any
) -> AsyncIterator[HttpDoor]:
    """Serves until the end of the block; `options` are the router's."""
    model = tiny_model(folder / "model", 4096)
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "low.yaml").write_text(json.dumps({"domain": "low", "risk": "low", "bands": BANDS}))
    tiers = {"d": DENSE, "m": MODERATE, "a": AGGRESSIVE}
    found = list(workers) or [FakeWorker(name, tier, model) for name, tier in tiers.items()]
    port = free_port()
    async with AsyncExitStack() as held:
        for worker in found:
            await worker.start()
            held.push_async_callback(worker.stop)
        config = RouterConfig(
            model,
            tuple(worker.address for worker in found),
            policy_dir=folder / "policies",
            listen="127.0.0.1:0",
            http_listen=f"127.0.0.1:{port}",
            drain_seconds=2.0,
            **options,
        )
        router = await held.enter_async_context(running(config))

        async def is_ready() -> bool:
            return await router.health() == "SERVING"

        await until(is_ready)
        session = await held.enter_async_context(httpx.AsyncClient(timeout=20.0, trust_env=False))
        yield HttpDoor(f"http://127.0.0.1:{port}", model.name, router, found, key, session)
