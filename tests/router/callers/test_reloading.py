"""Keys, roles, rates and lease keys change while a router serves; a broken file changes nothing and is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, policy_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.access.access import key_digest
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys, read_keys
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.background import reloading
from sparsity_serving.background.reloading import ReloadedFile, Reloading
from support.routers.rig import DENSE
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

_PRINCIPAL = "{{name: {name}, key_sha256: {digest}, roles: [{roles}]}}"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at twenty times a second."""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.05)


def write(path: Path, text: str) -> None:
    """As a mounted Secret changes: in one step."""
    scratch = path.with_name("scratch")
    scratch.write_text(text)
    os.replace(scratch, path)


def access(*principals: tuple[str, str], inference: str = "open") -> str:
    """An access file; every principal's key is its name."""
    entries = (_PRINCIPAL.format(name=name, digest=key_digest(name), roles=roles) for name, roles in principals)
    return f"inference: {inference}\nprincipals: [{', '.join(entries)}]"


async def code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def becomes(make: Callable[[], Any], wanted: grpc.StatusCode) -> None:
    async def is_so() -> bool:
        return await code(make()) is wanted

    await until(is_so)


def with_key(key: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {key}"),)}


async def problems(router: Router, key: str) -> list[str]:
    stub: Any = fleet_pb2_grpc.FleetServiceStub(router.channel)
    fleet = await stub.GetFleet(fleet_pb2.GetFleetRequest(), **with_key(key))
    return [problem for each in fleet.routers for problem in each.problems]


async def test_who_may_call_what_changes_while_the_router_serves(tmp_path: Path, caplog: Any) -> None:
    file, asked = tmp_path / "access.yaml", policy_pb2.GetPolicyRequest(domain="rag")
    explain = inference_pb2.ExplainRequest(request=make_request("hi", domain="rag"))
    file.write_text(access(("ann", "viewer")))
    with Valkey() as server:
        config = RouterConfig(
            tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", access=file, drain_seconds=0.1
        )
        async with running(config) as router:

            def put(key: str) -> Any:
                override = policy_pb2.Override(id="k", scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="test")
                return router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override), **with_key(key))

            def get(key: str) -> Any:
                return router.policy.GetPolicy(asked, **with_key(key))

            assert await code(get("ann")) is grpc.StatusCode.OK
            assert await code(get("bob")) is grpc.StatusCode.UNAUTHENTICATED
            assert await code(put("ann")) is grpc.StatusCode.PERMISSION_DENIED
            # A key comes, another gets a role, and InferenceService asks for one.
            write(file, access(("ann", "breaker"), ("bob", "viewer"), inference="required"))
            await becomes(lambda: get("bob"), grpc.StatusCode.OK)
            assert await code(put("ann")) is grpc.StatusCode.OK
            assert (await failure(router.inference.Explain(explain))).code() is grpc.StatusCode.UNAUTHENTICATED
            # A mistake opens and closes nothing.
            write(file, "principals: [")

            async def told() -> bool:
                return any("--access" in problem for problem in await problems(router, "bob"))

            await until(told)
            assert await code(get("bob")) is grpc.StatusCode.OK
            assert await code(put("ann")) is grpc.StatusCode.OK
            assert caplog.text.count("what it said before holds") == 1
            # A key that leaked is gone at once.
            write(file, access(("bob", "viewer")))
            await becomes(lambda: put("ann"), grpc.StatusCode.UNAUTHENTICATED)
            assert await problems(router, "bob") == []


async def test_a_signal_hurries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 3600.0)
    file = tmp_path / "limits.yaml"
    file.write_text("default: {requests: 1/hour}")
    route = inference_pb2.RouteRequest(request=make_request("hi", tenant="t"))
    (tmp_path / "key").write_text("k" * 32)
    with Valkey() as server:
        config = RouterConfig(
            tiny_model(tmp_path / "model"),
            ("127.0.0.1:1",),
            server.url,
            "127.0.0.1:0",
            tenant_limits=file,
            lease_key_file=tmp_path / "key",
            queue_seconds=0.0,
            drain_seconds=0.1,
        )
        async with running(config) as router:
            assert await code(router.inference.Route(route)) is grpc.StatusCode.UNAVAILABLE
            assert await code(router.inference.Route(route)) is grpc.StatusCode.RESOURCE_EXHAUSTED
            write(file, "default: {requests: 1000/hour}")
            assert await code(router.inference.Route(route)) is grpc.StatusCode.RESOURCE_EXHAUSTED
            os.kill(os.getpid(), signal.SIGHUP)
            await becomes(lambda: router.inference.Route(route), grpc.StatusCode.UNAVAILABLE)


async def test_lease_keys_are_changed_without_a_refused_request(tmp_path: Path) -> None:
    """Routers and a worker take the next key as the second, then as the first, then alone."""
    ours, theirs = tmp_path / "router.keys", tmp_path / "worker.keys"
    old, new = "2026-11: " + "o" * 32, "2026-12: " + "n" * 32
    for file in (ours, theirs):
        file.write_text(old)
    keys = LeaseKeys(*read_keys(theirs))
    fake = FakeWorker("w", DENSE, tiny_model(tmp_path / "model"), leases=LeaseChecker(keys, "w", {DENSE}))
    await fake.start()
    at_worker = Reloading(ReloadedFile("--lease-key-file", theirs, read_keys, keys.adopt))
    following = asyncio.create_task(at_worker.run())
    with Valkey() as server:
        options: dict[str, Any] = {"lease_key_file": ours, "queue_seconds": 0.0, "drain_seconds": 0.1}
        config = RouterConfig(fake.model, (fake.address,), server.url, "127.0.0.1:0", **options)
        async with running(config) as router, AsyncWireClient(router.address) as client:

            async def answered() -> str:
                return "".join([r.text async for r in client.generate(make_request("hi", domain="rag"), 10.0)])

            async def signs(key_id: str) -> bool:
                assert await answered() == "abc"
                lease = fake.received[-1].lease.token
                return inference_pb2.LeaseClaims.FromString(lease[:-32]).key_id == key_id

            await becomes(lambda: router.generate(), grpc.StatusCode.OK)
            assert await signs("2026-11")
            for text in (f"{old}\n{new}", f"{new}\n{old}", new):
                for file in (theirs, ours):
                    write(file, text)
                    at_worker.hurry()
                    for _ in range(4):
                        assert await answered() == "abc"
                        await asyncio.sleep(0.3)
            await until(lambda: signs("2026-12"))
            assert keys.signing == LeaseKey("2026-12", b"n" * 32)
    following.cancel()
    await fake.stop()


async def test_what_became_of_a_file_is_a_metric(tmp_path: Path) -> None:
    file, taken = tmp_path / "file", list[str]()

    def read(path: Path) -> str:
        if "bad" in (text := path.read_text() if path.exists() else "bad"):
            raise ConfigurationError(f"--option: {text}")
        return text

    file.write_text("one")
    watched = ReloadedFile("--option", file, read, taken.append)
    files, meter = Reloading(watched), Meter()
    files.observe(meter.meter)

    async def after(change: Callable[[], Any]) -> tuple[float, float]:
        change()
        await watched.look()
        await watched.look()
        values = meter.values()
        rejected, reloads = (values[f"sparsity.options_file.{name}"] for name in ("rejected", "reloads"))
        assert [attributes for attributes, _ in (*rejected, *reloads)] == [{"sparsity.option": "--option"}] * 2
        return rejected[0][1], reloads[0][1]

    assert await after(lambda: None) == (0, 0)
    assert await after(lambda: file.write_text("two")) == (0, 1)
    assert await after(lambda: file.write_text("bad")) == (1, 1)
    assert files.problems() == ["--option: bad"]
    assert await after(file.unlink) == (1, 1)
    assert await after(lambda: file.write_text("two")) == (0, 2)
    assert taken == ["two", "two"]
