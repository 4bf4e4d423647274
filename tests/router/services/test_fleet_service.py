"""GetFleet and `sparsity status`: workers, breakers, queues and every router of the store."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio as redis
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc
from sparsity_cli.main import app
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.fleet import replicas
from sparsity_router.fleet.replicas import Replicas
from sparsity_router.following.follower import PolicyFollower
from sparsity_serving.access.access import key_digest
from sparsity_serving.background.ending import end_tasks
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE
from support.routers.router import Router, failure, running, until
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers tell of themselves ten times a second."""
    monkeypatch.setattr(replicas, "_TELL_SECONDS", 0.1)


async def fleet(router: Router, key: str = "") -> Any:
    stub: Any = fleet_pb2_grpc.FleetServiceStub(router.channel)
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    return await stub.GetFleet(fleet_pb2.GetFleetRequest(), metadata=metadata)


async def test_workers_lines_and_routers_are_told(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    workers = [await FakeWorker("d", DENSE, model, requests=3).start()]
    workers.append(await FakeWorker("a", AGGRESSIVE, model, sparse_calls=0).start())
    places = (*(worker.address for worker in workers), "127.0.0.1:1")
    with Valkey() as server:
        common: dict[str, Any] = {"listen": "127.0.0.1:0"}
        async with running(RouterConfig(model, places, server.url, **common)) as router:

            async def seen() -> Any:
                found = await fleet(router)
                names = [fleet_pb2.WorkerState.Name(worker.state) for worker in found.workers]
                wanted = [f"WORKER_STATE_{word}" for word in ("READY", "UNPROVEN", "UNREACHABLE")]
                return found if names == wanted and found.workers[2].problem else None

            found = await until(seen)
            with RouterProcess(tmp_path, "--redis-url", server.url) as other:

                async def both() -> Any:
                    told = await fleet(router)
                    return told if len(told.routers) == 2 else None

                told = await until(both)
                assert {item.address for item in told.routers} == {router.address, other.address}
                assert len({item.content_hash for item in told.routers}) == 1

            async def alone() -> bool:
                return len((await fleet(router)).routers) == 1

            await until(alone)
    first, second, third = found.workers
    assert (first.worker_id, first.requests, first.max_requests, first.tier) == ("d", 3, 4, DENSE)
    assert first.breaker == fleet_pb2.BREAKER_STATE_CLOSED
    assert "no sparse kernel call" in second.problem
    assert (third.worker_id, third.endpoint) == ("", "127.0.0.1:1")
    assert [(item.tier, item.workers, item.ready_workers) for item in found.tiers] == [(1, 1, 1), (2, 0, 0), (3, 1, 0)]
    assert [[own.tier for own in worker.tiers] for worker in found.workers] == [[DENSE], [AGGRESSIVE], []]
    assert first.tiers[0].requests == 3
    for worker in workers:
        await worker.stop()


async def test_a_shared_worker_is_told_and_shown_at_each_of_its_tiers(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    tiers, held = (DENSE, MODERATE, AGGRESSIVE), {DENSE: 2, AGGRESSIVE: 1}
    shared = FakeWorker("s", DENSE, model, tiers=tiers, unproven=(MODERATE,), requests=3, held=held)
    await shared.start()
    with Valkey() as server:
        async with running(RouterConfig(model, (shared.address,), server.url, "127.0.0.1:0")) as router:

            async def ready() -> Any:
                found = await fleet(router)
                return found if found.workers[0].state == fleet_pb2.WORKER_STATE_READY else None

            found = await until(ready)
            status = partial(CliRunner().invoke, app, ["status", "--router", router.address])
            shown, as_json = (
                await asyncio.to_thread(status),
                await asyncio.to_thread(
                    partial(CliRunner().invoke, app, ["status", "--router", router.address, "--json"])
                ),
            )
    (worker,) = found.workers
    assert worker.tier == DENSE
    told = [(own.tier, own.profile, own.probe_density, own.requests) for own in worker.tiers]
    assert told == [(DENSE, "tier1@1", 1.0, 2), (MODERATE, "tier2@1", 0.2, 0), (AGGRESSIVE, "tier3@1", 0.2, 1)]
    # It counts at each of them, and is ready at those that it proves.
    assert [(item.tier, item.workers, item.ready_workers) for item in found.tiers] == [(1, 1, 1), (2, 1, 0), (3, 1, 1)]
    assert worker.problem == "moderate: its start-up proof shows no sparse kernel call"
    assert "dense 2, moderate 0, aggressive 1" in shown.stdout
    assert "tier1@1, tier2@1, tier3@1" in shown.stdout
    (row,) = json.loads(as_json.stdout)["workers"]
    assert [own["requests"] for own in row["tiers"]] == [2, 0, 1]
    await shared.stop()


async def test_garbage_and_a_lost_store_leave_this_router(tmp_path: Path) -> None:
    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0")
        async with running(config) as router:
            client = redis.Redis.from_url(server.url)
            old = {
                "router_id": "old",
                "address": "x",
                "revision": 1,
                "content_hash": "",
                "policy_age": 0,
                "policy_lag": 0,
            }
            await client.hset("{sparsity}:replicas", mapping={"junk": "{", "old": json.dumps(old | {"heard": 1.0})})  # type: ignore[misc]
            assert len((await fleet(router)).routers) == 1

            async def cleared() -> bool:
                return len(await client.hkeys("{sparsity}:replicas")) == 1  # type: ignore[misc]

            await until(cleared)
            await client.aclose()
            await asyncio.to_thread(server.stop)
            assert len((await fleet(router)).routers) == 1


async def test_the_role_viewer_is_needed(tmp_path: Path) -> None:
    roles = (("ann", "viewer"), ("app", "caller"))
    lines = [f"  - {{name: {name}, key_sha256: {key_digest(name)}, roles: [{role}]}}" for name, role in roles]
    (tmp_path / "access.yaml").write_text("principals:\n" + "\n".join(lines))
    with Valkey() as server:
        model = tiny_model(tmp_path / "model")
        config = RouterConfig(model, ("127.0.0.1:1",), server.url, "127.0.0.1:0", access=tmp_path / "access.yaml")
        async with running(config) as router:
            assert (await fleet(router, "ann")).router_id
            for key, code in (("", "UNAUTHENTICATED"), ("app", "PERMISSION_DENIED")):
                assert (await failure(fleet(router, key))).code() is grpc.StatusCode[code]


def test_status_shows_a_router_anywhere(tmp_path: Path) -> None:
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url) as router:
        result = CliRunner().invoke(app, ["status", "--router", router.address])
        assert result.exit_code == 0, result.output
        for words in ("127.0.0.1:1", "unreachable", "aggressive", "0/0", router.address):
            assert words in result.stdout
        report = json.loads(CliRunner().invoke(app, ["status", "--router", router.address, "--json"]).stdout)
        assert report["routers"][0]["address"] == router.address
    assert CliRunner().invoke(app, ["status", "--router", router.address]).exit_code == 4


async def test_routers_with_wrong_clocks_hear_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tells the time by the store's clock."""
    with Valkey() as server:
        stores, told = [PolicyStore(server.url) for _ in range(2)], []
        for store, skew in zip(stores, (0.0, 3600.0), strict=True):
            monkeypatch.setattr(time, "time", lambda skew=skew: time.time_ns() / 1e9 + skew)
            follower = PolicyFollower(store, ttl=300)
            await follower.start()
            replicas = Replicas(follower, store.redis)
            assert abs(replicas.own().heard - time.time_ns() / 1e9) < 1.0
            task = asyncio.create_task(replicas.run())
            told.append((replicas, task))

            async def heard(replicas: Replicas = replicas, count: int = len(told)) -> bool:
                return len(await replicas.all()) == count

            await until(heard)
        await end_tasks(task for _, task in told)
        for store in stores:
            await store.close()
