"""A client's channels to workers stay few, however many addresses its leases named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client.wire import AsyncWireClient, WireClient, make_request
from sparsity_client.wire.worker_channels import MOST_IDLE, WorkerChannels
from sparsity_router.server import INFERENCE
from sparsity_serving.server import listen
from support.routers.rig import DENSE
from support.tiny import tiny_model
from support.workers.fake_worker import SERVICE, FakeWorker

_LEASES = 1000


class _Router:
    """Names the next address of one worker, which answers at all of the loopback's."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._named = 0

    async def Route(self, request: Any, context: Any) -> inference_pb2.RouteResponse:
        high, low = divmod(self._named, 250)
        self._named += 1
        inner = worker_pb2.WorkerServiceGenerateRequest(tier=DENSE, prompt=inference_pb2.TokenIds(ids=[1]))
        return inference_pb2.RouteResponse(
            endpoint=f"127.0.{high}.{low + 1}:{self._port}", worker_request=inner.SerializeToString()
        )


@asynccontextmanager
async def routed(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A router's address, and the port of the worker."""
    worker = listen("0.0.0.0:0", {SERVICE: FakeWorker("w", DENSE, tiny_model(folder))}, 2**26)
    router = listen("127.0.0.1:0", {INFERENCE: _Router(worker.port)}, 2**26)
    await worker.server.start()
    await router.server.start()
    yield f"127.0.0.1:{router.port}", worker.port
    await router.server.stop(None)
    await worker.server.stop(None)


def connections(port: int) -> int:
    """Of this process, to the worker."""
    there = psutil.Process(os.getpid()).net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port and each.status == "ESTABLISHED" for each in there)


async def settles(port: int) -> int:
    for _ in range(100):
        if (count := connections(port)) <= MOST_IDLE:
            break
        await asyncio.sleep(0.05)
    return count


async def test_a_thousand_addresses_leave_few_channels(tmp_path: Path) -> None:
    async with routed(tmp_path) as (address, port), AsyncWireClient(address) as client:
        for _ in range(_LEASES):
            async with aclosing(client.generate(make_request("hi"), 10.0, direct=True)) as responses:
                assert "".join([response.text async for response in responses]) == "abc"
        assert 0 < await settles(port) <= MOST_IDLE


async def test_the_blocking_client_keeps_as_few(tmp_path: Path) -> None:
    def ask(address: str) -> WireClient:
        client = WireClient(address)
        for _ in range(2 * MOST_IDLE):
            responses = client.generate(make_request("hi"), 10.0, direct=True)
            assert "".join(response.text for response in responses) == "abc"
        return client

    async with routed(tmp_path) as (address, port):
        client = await asyncio.to_thread(ask, address)
        assert 0 < await settles(port) <= MOST_IDLE
        await asyncio.to_thread(client.close)


def test_a_channel_with_a_stream_is_kept_and_an_idle_one_used_again() -> None:
    opened: list[str] = []
    channels = WorkerChannels(lambda address: (opened.append(address), address)[1])
    assert channels.borrow("streams") == "streams"
    closed = []
    for number in range(2 * MOST_IDLE):
        channels.borrow(f"{number}")
        closed += channels.give_back(f"{number}")
    assert closed == [f"{number}" for number in range(MOST_IDLE)]
    channels.borrow(f"{MOST_IDLE}")
    channels.borrow("streams")
    assert opened.count("streams") == opened.count(f"{MOST_IDLE}") == 1
    assert set(channels.all()) == {"streams", *(f"{number}" for number in range(MOST_IDLE, 2 * MOST_IDLE))}
