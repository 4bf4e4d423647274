"""TLS and mutual TLS between client, router and worker, over real handshakes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from sparsity.v1 import inference_pb2, inference_pb2_grpc
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from sparsity_rpc.tls import ClientTls, ServerTls, open_aio_channel
from sparsity_serving.server import listen
from support.routers.rig import DENSE
from support.routers.router import running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import SERVICE, FakeWorker


class Authority:
    """A certificate authority that writes PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}-ca.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def pair(self, name: str, *, local: bool = True) -> tuple[Path, Path]:
        issued = self._ca.issue_cert(*(("127.0.0.1", "localhost") if local else ()), f"{name}.example")
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        scratch = self._folder / "scratch"
        for path, blobs in ((key, [issued.private_key_pem]), (cert, issued.cert_chain_pems)):
            scratch.write_bytes(b"".join(blob.bytes() for blob in blobs))
            os.replace(scratch, path)
        return cert, key


async def worker(model: Path, tls: ServerTls) -> FakeWorker:
    made = FakeWorker("d", DENSE, model)
    endpoint = listen("127.0.0.1:0", {SERVICE: made}, 2**26, tls)
    await endpoint.server.start()
    made._server, made.address = endpoint.server, f"127.0.0.1:{endpoint.port}"
    return made


async def reaches(fake: FakeWorker, tls: ClientTls) -> bool:
    """Whether a handshake comes about."""
    async with open_aio_channel(fake.address, tls) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), 2.0)
        except TimeoutError:
            return False
        return True


async def generate(address: str, tls: ClientTls | None, *, direct: bool = False) -> str:
    async with AsyncWireClient(address, tls=tls) as client:
        request = make_request("hi", domain="rag")
        return "".join([response.text async for response in client.generate(request, 10.0, direct=direct)])


async def test_mutual_tls_all_the_way(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    model = tiny_model(tmp_path / "model")
    (tmp_path / "key").write_text("k" * 32)
    fake = await worker(model, ServerTls(*ours.pair("worker"), client_ca=ours.path))
    with Valkey() as server:
        config = RouterConfig(model, (fake.address,), server.url, "127.0.0.1:0", lease_key_file=tmp_path / "key")
        config = replace(
            config,
            tls=ServerTls(*ours.pair("router"), client_ca=ours.path),
            worker_tls=ClientTls(ours.path, *ours.pair("router-as-client")),
        )
        async with running(config) as router:
            good = ClientTls(ours.path, *ours.pair("client"))

            async def answered() -> bool:
                try:
                    return await generate(router.address, good) == "abc"
                except UnavailableError:
                    return False

            await until(answered)
            assert await generate(router.address, good, direct=True) == "abc"
            for bad in (
                None,
                ClientTls(ours.path),
                ClientTls(ours.path, *theirs.pair("stranger")),
                ClientTls(theirs.path),
            ):
                with pytest.raises(UnavailableError):
                    await generate(router.address, bad)
    await fake.stop()


async def test_a_renewed_certificate_is_taken_up(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    model = tiny_model(tmp_path / "model")
    fake = await worker(model, ServerTls(*old.pair("worker")))

    assert await reaches(fake, ClientTls(old.path))
    (tmp_path / "worker.pem").write_text("half a fi")
    assert await reaches(fake, ClientTls(old.path)), "a file in the middle of its replacement changes nothing"
    new.pair("worker")
    assert await reaches(fake, ClientTls(new.path))
    assert not await reaches(fake, ClientTls(old.path))
    await fake.stop()


def test_bad_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = Authority(tmp_path, "a").pair("a")
    (tmp_path / "noise").write_text("noise")
    with pytest.raises(ConfigurationError, match=r"--tls-cert: .*none"):
        ServerTls(tmp_path / "none", key).credentials()
    with pytest.raises(ConfigurationError, match="is not a PEM file"):
        ServerTls(cert, tmp_path / "noise").credentials()
    with pytest.raises(ConfigurationError, match="give both"):
        ClientTls(None, cert).credentials()
    for name in ("", "_CA", "_CERT", "_KEY"):
        monkeypatch.delenv(f"SPARSITY_TLS{name}", raising=False)
    assert ClientTls.from_environment() is None
    monkeypatch.setenv("SPARSITY_TLS", "1")
    assert ClientTls.from_environment() == ClientTls()
    monkeypatch.setenv("SPARSITY_TLS_CA", str(cert))
    assert ClientTls.from_environment() == ClientTls(cert)


async def test_a_certificate_may_name_a_service_in_the_place_of_an_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    fake = await worker(tiny_model(tmp_path / "model"), ServerTls(*authority.pair("worker", local=False)))
    assert await reaches(fake, ClientTls(authority.path, server_name="worker.example"))
    assert not await reaches(fake, ClientTls(authority.path))
    assert not await reaches(fake, ClientTls(authority.path, server_name="router.example"))
    await fake.stop()


async def test_plain_text_is_refused(tmp_path: Path) -> None:
    fake = await worker(tiny_model(tmp_path / "model"), ServerTls(*Authority(tmp_path, "a").pair("w")))
    async with grpc.aio.insecure_channel(fake.address) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Explain(inference_pb2.ExplainRequest(), timeout=2.0)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    await fake.stop()
