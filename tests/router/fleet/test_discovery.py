"""Workers by address, by name, and by Kubernetes service; they come and go under traffic."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sparsity_client.wire import make_request
from sparsity_router.fleet import discovery
from sparsity_router.fleet.discovery import Dns, EndpointSlices, discover
from sparsity_router.fleet.workers import State
from sparsity_rpc.errors import ConfigurationError
from support.routers.rig import DENSE, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer


@pytest.mark.parametrize("place", ["dns:///nameless", "k8s:///service:7001", "k8s:///ns/service", "http:///x:1"])
def test_bad_places_are_told(place: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--worker: {place}: must be"):
        discover([place])


def test_places_mix() -> None:
    found = discover(["a:1", "dns:///b.example:2", "c:3"])
    assert [list(source.known) for source in found] == [["a:1", "c:3"], []]


class Names:
    """What a name resolves to, as the test likes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: list[str] | None = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.answer)

    async def answer(self, host: str, port: int, **_: Any) -> list[Any]:
        if self.hosts is None:
            raise socket.gaierror("no such name")
        return [(0, 0, 0, "", (host, port)) for host in self.hosts]


async def test_a_name_is_asked_again_and_a_failure_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.hosts = ["10.0.0.1", "fd00::1"]
    following = Dns("dns:///workers.example:7001", seconds=0.01).follow()
    assert await anext(following) == {"10.0.0.1:7001", "[fd00::1]:7001"}
    names.hosts = None
    waiting = asyncio.create_task(anext(following))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    assert not waiting.done()
    names.hosts = ["10.0.0.2"]
    assert await waiting == {"10.0.0.2:7001"}


async def test_workers_come_and_go_and_streams_end_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_RESOLVE_SECONDS", 0.02)
    model, release = tiny_model(tmp_path), asyncio.Event()

    async def slow(worker: FakeWorker, request: Any, context: Any) -> Any:
        async for response in answer(worker, request, context):
            yield response
            await release.wait()

    old = await FakeWorker("old", DENSE, model, behaviour=slow).start()
    new = await FakeWorker("new", DENSE, model).start()
    found: asyncio.Queue[set[str]] = asyncio.Queue()

    class Told:
        known: tuple[str, ...] = (old.address,)

        async def follow(self) -> AsyncIterator[set[str]]:
            while True:
                yield await found.get()

    monkeypatch.setitem(discovery.SOURCES, "told", lambda _: Told())
    async with rig(model, places=("told:///",)) as r:
        stream = aiter(r.stub.Generate(make_request("hi", domain="low")))
        assert (await anext(stream)).text == "a"
        found.put_nowait({new.address})
        await until(lambda: any(w.target == new.address and w.state is State.READY for w in r.fleet.workers))
        assert {(await r.generate("hi"))[1].worker_id for _ in range(5)} == {"new"}
        assert {worker.target for worker in r.fleet.workers} == {old.address, new.address}
        release.set()
        assert [response.text async for response in stream][:2] == ["b", "c"]
        await until(lambda: [worker.target for worker in r.fleet.workers] == [new.address])
    await old.stop()
    await new.stop()


def slices(*ready: str, terminating: tuple[str, ...] = (), name: str = "s1") -> dict[str, Any]:
    endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in ready]
    endpoints += [{"addresses": [a], "conditions": {"ready": False, "terminating": True}} for a in terminating]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {"name": name, "resourceVersion": "1"},
        "endpoints": endpoints,
        "ports": [{"name": "grpc", "port": 7001}, {"name": "metrics", "port": 9090}],
    }


@asynccontextmanager
async def api_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A Kubernetes API of one collection, and a kubeconfig that leads to it."""
    events: asyncio.Queue[Any] = asyncio.Queue()
    listed = {"items": [slices("10.0.0.1", terminating=("10.0.0.9",))], "asked": [], "cut": 0}

    async def collection(request: web.Request) -> web.StreamResponse:
        listed["asked"].append(dict(request.query))
        if not request.query.get("watch"):
            if listed["cut"] and request.transport:
                listed["cut"] -= 1
                request.transport.abort()
            kind = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList"}
            return web.json_response(kind | {"metadata": {"resourceVersion": "7"}, "items": listed["items"]})
        response = web.StreamResponse()
        await response.prepare(request)
        while (event := await events.get()) is not None:
            if event == "cut" and request.transport:
                request.transport.abort()
                break
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    app = web.Application()
    app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", collection)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config | {"current-context": "x", "apiVersion": "v1", "kind": "Config"}))
    monkeypatch.setattr("kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr(discovery, "_RETRY_SECONDS", 0.05)
    try:
        yield events, listed
    finally:
        events.put_nowait(None)
        await runner.cleanup()


async def test_endpoint_slices_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_server(tmp_path, monkeypatch) as (events, listed):
        following = EndpointSlices("k8s:///ns/workers:grpc").follow()
        assert await anext(following) == {"10.0.0.1:7001"}
        assert listed["asked"][0]["labelSelector"] == "kubernetes.io/service-name=workers"
        events.put_nowait({"type": "ADDED", "object": slices("10.0.0.2", "10.0.0.3", name="s2")})
        assert await anext(following) == {"10.0.0.1:7001", "10.0.0.2:7001", "10.0.0.3:7001"}
        events.put_nowait({"type": "DELETED", "object": slices("10.0.0.1")})
        assert await anext(following) == {"10.0.0.2:7001", "10.0.0.3:7001"}
        listed["items"] = [slices("10.0.0.4")]
        events.put_nowait(None)
        assert await anext(following) == {"10.0.0.4:7001"}, "a watch that ends is begun again by a list"
        await following.aclose()  # type: ignore[attr-defined]


async def test_a_port_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_server(tmp_path, monkeypatch):
        following = EndpointSlices("k8s:///ns/workers:9090").follow()
        assert await anext(following) == {"10.0.0.1:9090"}
        await following.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["list", "watch", "event"])
async def test_an_api_server_that_goes_away_or_answers_oddly_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_server(tmp_path, monkeypatch) as (events, listed):
        following: Any = EndpointSlices("k8s:///ns/workers:grpc").follow()
        assert await anext(following) == {"10.0.0.1:7001"}
        listed["items"], listed["cut"] = [slices("10.0.0.4")], 4 * (where == "list")
        events.put_nowait({"list": None, "watch": "cut", "event": {"type": "ADDED", "object": {}}}[where])
        assert await asyncio.wait_for(anext(following), 20) == {"10.0.0.4:7001"}
        assert "its last workers are kept" in caplog.text
        await following.aclose()
