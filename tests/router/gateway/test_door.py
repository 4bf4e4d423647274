"""The HTTP door as a server: who leaves, how it ends, TLS, processes, and that its answers are gRPC's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from sparsity.v1 import inference_pb2
from sparsity_router.gateway import door as door_module
from sparsity_router.gateway.door import Door
from sparsity_router.gateway.exchange import Exchange
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import ServerTls
from sparsity_serving.access.access import key_digest
from support.routers.http_door import events, http_door
from support.routers.rig import AGGRESSIVE, DENSE, LONG, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, hang


async def drip(worker: FakeWorker, request: Any, context: Any) -> Any:
    """A token every hundredth of a second, for ever."""
    while True:
        yield inference_pb2.GenerateResponse(text="x", token_ids=[120])
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("behaviour", [hang, drip])
@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_ends_the_engines_request(tmp_path: Path, behaviour: Any, stream: bool) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=behaviour)
    async with http_door(tmp_path, worker) as door:
        with suppress(TimeoutError, httpx.ReadTimeout):
            async with asyncio.timeout(0.5):
                await door.chat(stream=stream)
        await until(lambda: worker.cancelled == 1, 3.0)
        worker.behaviour = answer
        assert (await door.chat()).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"])
async def test_a_head_that_does_not_come_whole_is_not_waited_for(
    tmp_path: Path, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly its bytes come; a request that is answered for longer is let be."""
    monkeypatch.setattr("sparsity_router.gateway.door._HEAD_SECONDS", 0.5)

    async def slow(worker: FakeWorker, request: Any, context: Any) -> Any:
        await asyncio.sleep(1.0)
        async for message in answer(worker, request, context):
            yield message

    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=slow)
    async with http_door(tmp_path, worker) as door:
        asking = asyncio.create_task(door.chat())
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(begun)
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(5.0):
            while not closed.done():
                writer.write(b"a: b\r\n" if begun else b"")
                await asyncio.sleep(0.05)
        writer.close()
        assert (await asking).status_code == 200
        # By the same connection again, after a while.
        await asyncio.sleep(0.7)
        worker.behaviour = answer
        assert (await door.chat()).status_code == 200


async def test_a_stream_that_nobody_reads_waits(tmp_path: Path) -> None:
    sent: list[int] = []

    async def flood(worker: FakeWorker, request: Any, context: Any) -> Any:
        try:
            for _ in range(400):
                yield inference_pb2.GenerateResponse(text="x" * 65536, token_ids=[120])
                sent.append(1)
        finally:
            sent.append(0)

    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=flood)
    async with http_door(tmp_path, worker) as door:
        body = json.dumps({"model": door.model, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
        writer.write(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        await asyncio.sleep(1.0)
        assert 0 < len(sent) < 400, "26 MB of text wait somewhere"
        writer.close()
        await until(lambda: 0 in sent, 3.0)
        assert len(sent) < 400


async def test_what_is_declared_reaches_policy(tmp_path: Path) -> None:
    async with http_door(tmp_path) as door:
        for headers, metadata, tier in (
            ({"x-sparsity-domain": "low"}, {}, "aggressive"),
            ({}, {"domain": "low"}, "aggressive"),
            ({"x-sparsity-domain": "low", "x-sparsity-max-tier": "moderate"}, {}, "moderate"),
            ({"x-sparsity-domain": "low"}, {"max_tier": "dense"}, "dense"),
            ({"x-sparsity-domain": "low", "x-sparsity-flags": "pii, urgent"}, {"domain": "low"}, "dense"),
            ({}, {"domain": "low", "flags": ""}, "aggressive"),
            ({}, {"domain": "strange"}, "dense"),
        ):
            told = await door.chat(LONG, headers=headers, metadata=metadata)
            assert (told.status_code, told.headers["x-sparsity-tier"]) == (200, tier), (headers, metadata)
        known = {
            "domain": "low",
            "task": "qa",
            "session": "s",
            "tenant": "t",
            "dense_reasoning": "true",
            "labels.a": "b",
        }
        assert (await door.chat(LONG, metadata=known)).status_code == 200
        assert door.workers[-1].received[-1].dense_reasoning


async def test_a_denser_worker_is_told_in_the_headers(tmp_path: Path) -> None:
    dense = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"))
    async with http_door(tmp_path, dense) as door:
        told = await door.chat(LONG, metadata={"domain": "low"})
        assert (told.headers["x-sparsity-tier"], told.headers["x-sparsity-reason"]) == ("dense", "tier_unavailable")
        found = told.json()["sparsity"]
        assert (found["tier"], found["policy_tier"], found["worker_id"]) == ("dense", "aggressive", "d")


async def test_http_and_grpc_give_the_same_answer(tmp_path: Path) -> None:
    async with http_door(tmp_path) as door:
        completion = await door.router.generate("low", 120)
        body, headers = {"model": door.model, "prompt": "y" * 120}, {"x-sparsity-domain": "low"}
        told = (await door.post("/v1/completions", json=body, headers=headers)).json()["sparsity"]
        one, other = door.workers[-1].received
        assert door.workers[-1].tier == AGGRESSIVE
        one.request_id = other.request_id = ""
        assert one == other, "the worker cannot tell which door a request came by"
        assert told["matched_rule"] == completion.decision.matched_rule
        assert told["report"]["coverage"] == completion.sparsity.coverage


@pytest.fixture
def ended_twice() -> Iterator[None]:
    """The rig ends a router that may have ended already."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("ended_twice")
async def test_what_is_in_flight_ends_when_the_router_does(tmp_path: Path) -> None:
    async def slowly(worker: FakeWorker, request: Any, context: Any) -> Any:
        async for message in answer(worker, request, context):
            await asyncio.sleep(0.2)
            yield message

    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=slowly)
    async with http_door(tmp_path, worker) as door:
        streaming = asyncio.create_task(door.chat(stream=True))
        await until(lambda: worker.received)
        os.kill(os.getpid(), signal.SIGTERM)
        assert events((await streaming).text)[-1] == "[DONE]"
        with pytest.raises(httpx.ConnectError):
            await door.chat()


async def test_tls_takes_up_renewed_certificates_and_demands_clients(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")

    def issue(authority: trustme.CA, name: str) -> tuple[Path, Path]:
        found = authority.issue_cert("127.0.0.1")
        found.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.crt").write_bytes(b"".join(blob.bytes() for blob in found.cert_chain_pems))
        return tmp_path / f"{name}.crt", tmp_path / f"{name}.key"

    async def status(authority: str, *client: Path) -> int:
        context = ssl.create_default_context(cafile=tmp_path / f"{authority}.pem")
        if client:
            context.load_cert_chain(*client)
        async with httpx.AsyncClient(verify=context, trust_env=False) as session:
            return (await session.get(f"https://{door.address}/")).status_code

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Exchange(scope, receive, send).answer(b"{}")

    tls = ServerTls(*issue(ours, "server"), client_ca=tmp_path / "ours.pem")
    good, bad = issue(ours, "client"), issue(theirs, "stranger")
    door = Door(app, "127.0.0.1:0", tls, shared=False, drain_seconds=1.0)
    serving = asyncio.create_task(door.serve())
    assert await status("ours", *good) == 200
    for client in ((), bad):
        with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
            await status("ours", *client)
    issue(theirs, "server")
    os.utime(tmp_path / "server.crt", ns=(1, 1))
    assert await status("theirs", *good) == 200
    await door.stop()
    await serving


def test_addresses_and_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for place, tls, words in (
            (address, None, f"--http-listen: cannot listen on {address}"),
            ("nowhere", None, "--http-listen: must be host:port"),
            ("127.0.0.1:0", ServerTls(tmp_path / "none", tmp_path / "none"), "--tls-cert"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                Door(None, place, tls, shared=False, drain_seconds=1.0)


async def test_load_balancers_are_told_by_http_what_grpc_tells(tmp_path: Path) -> None:
    """Without a key, and so that they look elsewhere while it drains."""
    principals = [{"name": "a", "key_sha256": key_digest("a-key"), "roles": ["caller"]}]
    (tmp_path / "access.yaml").write_text(json.dumps({"inference": "required", "principals": principals}))
    async with http_door(tmp_path, access=tmp_path / "access.yaml", worker_timeout=1.0) as door:
        assert (await door.post("/health", json={})).headers["allow"] == "GET, HEAD"

        async def health() -> tuple[int, str]:
            found = await door.session.get(f"{door.url}/health")
            return found.status_code, found.json()["status"]

        async def head() -> tuple[int, bytes]:
            found = await door.session.head(f"{door.url}/health")
            return found.status_code, found.content

        assert (await health(), await head()) == ((200, "ready"), (200, b""))
        # As a proxy may ask for it (RFC 9112, 3.2.2).
        for target, status in ((b"http://x/health", b"200"), (b"http://[x", b"404"), (b"*", b"404")):
            asked = b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            assert (await door.raw(asked)).startswith(b"HTTP/1.1 " + status)
        for worker in door.workers:
            await worker.stop()
        await told(health, (503, "not ready"))
        assert await head() == (503, b"")
        assert await door.router.health() == "NOT_SERVING"


async def told(health: Any, wanted: Any) -> None:
    found: list[Any] = []

    async def look() -> None:
        while not found or found[-1] != wanted:
            found.append(await health())
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), 10.0)


@pytest.mark.parametrize(("seconds", "renewed"), [(60.0, True), (0.0, False)])
async def test_connections_are_renewed_between_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, *, renewed: bool
) -> None:
    """So that clients that keep theirs find routers that came since; a stream that is under way ends whole."""
    old, renewed_, begun = False, door_module._renewed, asyncio.Event()

    async def waits(worker: FakeWorker, request: Any, context: Any) -> Any:
        yield inference_pb2.GenerateResponse(text="x", token_ids=[120])
        await begun.wait()
        async for message in answer(worker, request, context):
            yield message

    monkeypatch.setattr(door_module, "_renewed", lambda app, _: renewed_(app, lambda: old))
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=waits)
    async with http_door(tmp_path, worker, connection_seconds=seconds) as door:
        body = {"model": door.model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with door.session.stream("POST", f"{door.url}/v1/chat/completions", json=body) as streamed:
            old = True
            begun.set()
            text = (await streamed.aread()).decode()
        assert events(text)[-1] == "[DONE]"
        assert "connection" not in streamed.headers
        later = await door.session.get(f"{door.url}/v1/models")
        assert (later.status_code, later.headers.get("connection")) == (200, "close" if renewed else None)
        old = False
        anew = await door.session.get(f"{door.url}/v1/models")
        assert "connection" not in anew.headers


async def test_a_connection_is_old_after_its_time(tmp_path: Path) -> None:
    async with http_door(tmp_path, connection_seconds=0.4) as door:

        async def closing() -> str:
            return (await door.session.get(f"{door.url}/v1/models")).headers.get("connection", "")

        await told(closing, "close")
