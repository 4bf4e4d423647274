"""A whole router in the test's process, over a real store."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity.v1 import inference_pb2, inference_pb2_grpc, policy_pb2, policy_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from sparsity_router.server import serve


class Router:
    """What a test does with it; ``key`` is sent with every call."""

    def __init__(self, port: int, key: str = "") -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.policy: Any = policy_pb2_grpc.PolicyServiceStub(self.channel)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def tier(self, domain: str = "rag", characters: int = 120, **context: Any) -> tuple[str, str]:
        prompt = make_request("y" * characters, domain=domain, **context)
        decision = (await self.inference.Explain(inference_pb2.ExplainRequest(request=prompt))).decision
        return inference_pb2.Tier.Name(decision.tier), inference_pb2.Reason.Name(decision.reason)

    async def generate(self, domain: str = "rag", characters: int = 120, **context: Any) -> Any:
        """The completion of one request."""
        completion = None
        async for response in self.inference.Generate(make_request("y" * characters, domain=domain, **context)):
            if response.HasField("completion"):
                completion = response.completion
        return completion

    async def get(self, domain: str = "rag") -> Any:
        request = policy_pb2.GetPolicyRequest(domain=domain)
        return (await self.policy.GetPolicy(request, metadata=self.metadata)).policy

    async def edit(self, domain: str = "rag", bands: list[tuple[int, int]] | None = None, **request: Any) -> Any:
        stored = await self.get(domain)
        if bands is not None:
            del stored.policy.bands[:]
            for start, tier in bands:
                stored.policy.bands.add(from_tokens=start, tier=tier)
        request.setdefault("etag", stored.etag)
        request.setdefault("reason", "test")
        request.setdefault("policy", stored.policy)
        return await self.policy.PutPolicy(policy_pb2.PutPolicyRequest(**request), metadata=self.metadata)

    async def becomes(self, tier: str, domain: str = "rag") -> float:
        started = time.monotonic()
        while (await self.tier(domain))[0] != tier:
            assert time.monotonic() - started < 10, f"it never became {tier}"
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    async def ready(self) -> None:
        """Waits until it has heard the workers that it needs."""

        async def serves() -> bool:
            return await self.health() == "SERVING"

        await until(serves, 30.0)

    async def health(self) -> str:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@asynccontextmanager
async def running(config: RouterConfig, key: str = "", detect: str = "off") -> AsyncIterator[Router]:
    """Serves ``config`` until the end of the block, without a classifier unless asked: it takes a second to start."""
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(replace(config, detect=detect), started))
    done, _ = await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    if started not in done:
        task.result()
    router = Router(started.result(), key)
    try:
        yield router
    finally:
        await router.channel.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await task


async def failure(call: Any) -> Any:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(holds: Any, seconds: float = 10.0) -> Any:
    """Waits until the awaitable that ``holds`` makes is true."""
    deadline = time.monotonic() + seconds
    while not (value := await holds()):
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.02)
    return value
