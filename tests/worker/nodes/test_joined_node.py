"""What ends a node that follows, by processes in the place of its ranks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_rpc.errors import EngineError
from sparsity_serving.health import LIVENESS, READINESS
from sparsity_worker.__main__ import read_config
from sparsity_worker.joined_node import until_the_end
from support.ports import free_port
from support.tiny import tiny_model


@pytest.fixture
def ranks() -> Iterator[list[BaseProcess]]:
    """Two that compute for longer than any test lasts."""
    started = [multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600.0,)) for _ in range(2)]
    for rank in started:
        rank.start()
    yield started
    for rank in started:
        rank.kill()
        rank.join()


class Follower:
    """A node that follows, in the test's own loop and process."""

    def __init__(self, folder: Path, ranks: list[BaseProcess]) -> None:
        self._probes = f"127.0.0.1:{free_port()}"
        options = ["--worker-id", "w", "--tiers", "dense", "--model", str(tiny_model(folder)), "--nodes", "2"]
        options += ["--node-rank", "1", "--nodes-address", "leader.example:7003", "--tensor-parallel", "4"]
        # Longer than any test may take: none waits for it.
        options += ["--health-listen", self._probes, "--drain-seconds", "3600"]
        self.end = asyncio.create_task(until_the_end(read_config(options, {}), ranks))

    async def told(self, service: str) -> str:
        """What a probe is told."""
        async with grpc.aio.insecure_channel(self._probes) as channel:
            asked = health_pb2.HealthCheckRequest(service=service)
            told = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20, wait_for_ready=True)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(told.status))

    async def until(self, status: str) -> None:
        """Until it tells that of its readiness."""
        while await self.told(READINESS) != status:
            pass


@pytest.mark.parametrize("told_to_end", [False, True])
async def test_it_ends_when_a_rank_fails_and_does_not_end(
    told_to_end: bool, tmp_path: Path, ranks: list[BaseProcess]
) -> None:
    follower = Follower(tmp_path, ranks)
    await follower.until("SERVING")
    if told_to_end:
        os.kill(os.getpid(), signal.SIGTERM)
        await follower.until("NOT_SERVING")
        assert await follower.told(LIVENESS) == "SERVING"
    # As SGLang's watchdog says that a pass takes too long, and leaves the rank in it.
    os.kill(os.getpid(), signal.SIGQUIT)
    with pytest.raises(EngineError, match="node 1: a rank failed, or node 0 at leader"):
        await asyncio.wait_for(follower.end, 60)
    assert all(rank.is_alive() for rank in ranks)


async def test_files_that_node_0_is_to_read_anew_do_not_end_it(tmp_path: Path, ranks: list[BaseProcess]) -> None:
    follower = Follower(tmp_path, ranks)
    await follower.until("SERVING")
    os.kill(os.getpid(), signal.SIGHUP)
    assert await follower.told(READINESS) == "SERVING"
    for rank in ranks:
        rank.kill()
    await asyncio.wait_for(follower.end, 60)
