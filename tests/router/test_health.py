from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_router.config import RouterConfig
from sparsity_router.following.building import Builder
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.health import LIVENESS, READINESS, Health
from support.ports import free_port
from support.routers.rig import DENSE
from support.routers.router import running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def asked(address: str, name: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def becomes(address: str, status: int) -> None:
    async def is_so() -> bool:
        return await asked(address, READINESS) == status

    await until(is_so)


async def test_a_router_that_wants_no_traffic_is_still_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes, model = f"127.0.0.1:{free_port()}", tiny_model(tmp_path)
    worker = await FakeWorker("d", DENSE, model).start()
    with Valkey() as server:
        config = RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", drain_seconds=0.1)
        async with running(replace(config, max_policy_lag=0.2, health_listen=probes)) as router:
            await becomes(probes, SERVING)
            assert await asked(probes, LIVENESS) == SERVING
            monkeypatch.setattr(Builder, "build", lambda *_, **__: (_ for _ in ()).throw(ValueError("no")))
            await router.edit()
            await becomes(probes, NOT_SERVING)
            assert await asked(probes, LIVENESS) == SERVING
            assert await router.health() == "NOT_SERVING"
    await worker.stop()


async def test_who_drains_is_not_ready_again() -> None:
    address = f"127.0.0.1:{free_port()}"
    health = Health(["a.Service"])
    await health.serve(address)
    try:
        assert await asked(address, READINESS) == NOT_SERVING
        await health.tell(True)
        assert await asked(address, READINESS) == SERVING
        await health.drain()
        await health.tell(True)
        assert await asked(address, READINESS) == NOT_SERVING
        assert await asked(address, LIVENESS) == SERVING
    finally:
        await health.stop()


async def test_an_address_that_cannot_be_listened_on_is_told() -> None:
    with pytest.raises(ConfigurationError, match="--health-listen: cannot listen on"):
        await Health([]).serve("203.0.113.1:1")


async def test_old_connections_are_closed_and_calls_go_on(tmp_path: Path) -> None:
    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", drain_seconds=0.1)
        async with running(replace(config, connection_seconds=0.3)) as router:
            assert await router.health() == "NOT_SERVING"

            async def closed() -> bool:
                return router.channel.get_state() is grpc.ChannelConnectivity.IDLE

            await until(closed)
            assert await router.health() == "NOT_SERVING"
