"""A hundred thousand requests, of which a third are given up: memory stays where it was."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import psutil
import pytest
from sparsity.v1 import inference_pb2_grpc
from sparsity_client import make_request
from support.chaos_worker import worker_process
from support.router_process import RouterProcess
from support.tiny import tiny_model
from support.valkey import Valkey

REQUESTS, WARM_UP, AT_ONCE = 100_000, 20_000, 32


@pytest.mark.chaos
@pytest.mark.timeout(1500)
async def test_memory_stays_within_five_percent(tmp_path: Path) -> None:
    chance, left, cancelled = random.Random(7), REQUESTS, 0
    resident: dict[int, int] = {}
    with Valkey() as server, worker_process(tiny_model(tmp_path / "model"), "w") as worker:
        arguments = ("--redis-url", server.url, "--worker", worker.address)
        with RouterProcess(tmp_path, *arguments) as router:
            process = psutil.Process(router._process.pid)
            async with grpc.aio.insecure_channel(router.address) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                await asyncio.sleep(1.0)

                async def run() -> None:
                    nonlocal left, cancelled
                    while left > 0:
                        left -= 1
                        if left % 10_000 == 0:
                            resident[REQUESTS - left] = process.memory_info().rss
                        # Every session is met before the first figure: their table is bounded, and fills once.
                        number = chance.randrange(2000)
                        session, tenant = f"s{number}" if left % 2 else None, f"t{number % 20}"
                        request = make_request(
                            "y" * chance.randrange(1, 300), domain="rag", tenant=tenant, session=session
                        )
                        call = stub.Generate(request, timeout=30.0)
                        if chance.random() < 0.3:
                            await asyncio.sleep(chance.random() * 0.004)
                            call.cancel()
                            cancelled += 1
                            continue
                        async for _ in call:
                            pass

                await asyncio.gather(*(run() for _ in range(AT_ONCE)))
    assert cancelled > 0.25 * REQUESTS
    first = max(size for count, size in resident.items() if count <= WARM_UP)
    last = resident[REQUESTS]
    megabytes = {count: round(size / 1e6) for count, size in sorted(resident.items())}
    print(f"drift {last / first - 1:+.1%}; MB by request: {megabytes}", end=" ")
    assert last <= 1.05 * first
