"""A router is ready while it could serve a request, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import policy_pb2
from sparsity_router.config import RouterConfig
from sparsity_router.fleet.breaker import FAILURES_TO_OPEN
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, fail

_PATIENCE = 1.0


@asynccontextmanager
async def router_over(folder: Path, *workers: FakeWorker, **options: Any) -> AsyncIterator[Router]:
    model = tiny_model(folder)
    for worker in workers:
        worker.model = model
        await worker.start()
    with Valkey() as server:
        places = tuple(worker.address for worker in workers) or ("127.0.0.1:1",)
        config = RouterConfig(model, places, server.url, "127.0.0.1:0", worker_timeout=_PATIENCE, drain_seconds=0.1)
        async with running(replace(config, **options)) as router:
            yield router
    for worker in workers:
        await worker.stop()


async def becomes(router: Router, status: str) -> None:
    async def is_so() -> bool:
        return await router.health() == status

    await until(is_so)


async def stays(router: Router, status: str, seconds: float = 2 * _PATIENCE) -> None:
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        assert await router.health() == status
        await asyncio.sleep(0.05)


async def test_it_waits_for_a_worker_and_tells_when_the_last_is_gone(tmp_path: Path, caplog: Any) -> None:
    worker = FakeWorker("d", DENSE, tmp_path, draining=True)
    async with router_over(tmp_path, worker) as router:
        await becomes(router, "NOT_SERVING")
        assert "not ready: no worker can be used" in caplog.text
        worker.draining = False
        await becomes(router, "SERVING")
        # Work is no reason to want none.
        worker.requests = worker.places
        await stays(router, "SERVING")
        await worker.stop()
        await becomes(router, "NOT_SERVING")
        assert await router.tier() == ("TIER_DENSE", "REASON_LENGTH_BAND"), "policies can be looked at all the same"


@pytest.mark.parametrize("useless", [{"digest": "another"}, {"sparse_calls": 3}])
async def test_a_worker_that_cannot_be_used_is_none(tmp_path: Path, useless: dict[str, Any]) -> None:
    async with router_over(tmp_path, FakeWorker("d", DENSE, tmp_path, **useless)) as router:
        await becomes(router, "NOT_SERVING")
        await stays(router, "NOT_SERVING")


async def test_without_a_dense_worker_it_serves_what_may_go_sparse_and_nothing_once_nothing_may(
    tmp_path: Path, caplog: Any
) -> None:
    dense, sparse = FakeWorker("d", DENSE, tmp_path), FakeWorker("a", AGGRESSIVE, tmp_path)
    async with router_over(tmp_path, dense, sparse) as router:
        await becomes(router, "SERVING")
        await dense.stop()
        await stays(router, "SERVING")
        override = policy_pb2.Override(id="k", scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="test")
        await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
        await becomes(router, "NOT_SERVING")
        assert "not ready: everything is held dense, and no dense worker can be used" in caplog.text
        await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="k"))
        await becomes(router, "SERVING")


async def test_a_shared_worker_is_a_dense_one_while_it_proves_that_tier(tmp_path: Path, caplog: Any) -> None:
    shared = FakeWorker("s", DENSE, tmp_path, tiers=(DENSE, MODERATE, AGGRESSIVE))
    override = policy_pb2.Override(id="k", scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="test")
    async with router_over(tmp_path, shared) as router:
        await becomes(router, "SERVING")
        await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
        await stays(router, "SERVING")
        shared.unproven = (DENSE,)
        shared.come_back(shared.tiers)
        await becomes(router, "NOT_SERVING")
        assert "not ready: everything is held dense, and no dense worker can be used" in caplog.text


async def test_a_shared_worker_that_fails_dense_requests_is_no_dense_one(tmp_path: Path, caplog: Any) -> None:
    shared = FakeWorker("s", DENSE, tmp_path, tiers=(DENSE, MODERATE, AGGRESSIVE))
    override = policy_pb2.Override(id="k", scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="test")
    async with router_over(tmp_path, shared) as router:
        await becomes(router, "SERVING")
        await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
        shared.behaviour = fail(grpc.StatusCode.INTERNAL)
        # After each it is asked again as soon as it is heard again.
        while len(shared.received) < FAILURES_TO_OPEN:
            await failure(router.generate())
            await asyncio.sleep(0.05)
        await becomes(router, "NOT_SERVING")
        assert "not ready: everything is held dense, and no dense worker can be used" in caplog.text


async def test_stale_policies_need_a_dense_worker(tmp_path: Path) -> None:
    sparse = FakeWorker("a", AGGRESSIVE, tmp_path)
    with Valkey() as server:
        model = sparse.model = tiny_model(tmp_path)
        await sparse.start()
        config = RouterConfig(model, (sparse.address,), server.url, "127.0.0.1:0", worker_timeout=_PATIENCE)
        async with running(replace(config, policy_ttl=2.0, drain_seconds=0.1)) as router:
            # A dense worker may only not have been heard yet; that is soon over.
            await becomes(router, "SERVING")
            server.stop()
            await becomes(router, "NOT_SERVING")
    await sparse.stop()
