"""IPv6 addresses, wherever an address is given."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.config import RouterConfig
from sparsity_router.fleet.discovery import discover
from sparsity_rpc.errors import ConfigurationError, SparsityError
from sparsity_rpc.tls import ClientTls, ServerTls, open_aio_channel
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.addresses import Address, read_address, require_free
from sparsity_serving.server import listen
from support.ports import free_port, free_ports
from support.routers.rig import DENSE
from support.routers.router import running, until
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import SERVICE, FakeWorker

try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
except OSError:
    pytest.skip("this machine has no ::1", allow_module_level=True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:50051", Address("::1", 50051)),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1)),
        ("[::ffff:10.0.0.1]:1", Address("::ffff:10.0.0.1", 1)),
        ("a_b.example:7000", Address("a_b.example", 7000)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert read_address(text, "--listen") == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["::1:50051", "::1", "[::1]", "[::1]50051", "[host]:1", "host", ":1", "h:65536", "h:x"]
)
def test_what_is_no_address_is_told_with_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--listen: must be host:port, an IPv6 address in brackets"):
        read_address(text, "--listen")
    with pytest.raises(ConfigurationError, match="--worker: must be"):
        discover([text])


def test_one_that_is_taken_is_told() -> None:
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as taken:
        address = f"[::1]:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=r"--listen: cannot listen on \[::1\]"):
            require_free(address)


@pytest.mark.parametrize("place", ["{}", "dns:///{}"])
async def test_a_router_and_its_worker_meet_by_it(tmp_path: Path, place: str) -> None:
    keys, probes = LeaseKeys(LeaseKey("", b"k" * 32)), f"[::1]:{free_port('::1')}"
    (tmp_path / "key").write_bytes(b"k" * 32)
    model = tiny_model(tmp_path / "model")
    worker = FakeWorker("w", DENSE, model, leases=LeaseChecker(keys, "w", {DENSE}), host="[::1]")
    await worker.start()
    assert worker.address.startswith("[::1]:")
    with Valkey() as server:
        options: dict[str, Any] = {"lease_key_file": tmp_path / "key", "health_listen": probes, "drain_seconds": 0.1}
        config = RouterConfig(model, (place.format(worker.address),), server.url, "[::1]:0", **options)
        async with running(config) as router, AsyncWireClient(f"[::1]:{router.port}") as client:

            async def answer(direct: bool) -> str:
                made = make_request("hi", domain="rag")
                try:
                    async with aclosing(client.generate(made, 10.0, direct=direct)) as responses:
                        return "".join([response.text async for response in responses])
                except SparsityError:
                    return ""

            async def relayed() -> bool:
                return await answer(direct=False) == "abc"

            await until(relayed)
            # By the lease, from the worker itself.
            assert await answer(direct=True) == "abc"
            assert client._workers.all()
            async with grpc.aio.insecure_channel(probes) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                asked = health_pb2.HealthCheckRequest(service="liveness")
                assert (await stub.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
    await worker.stop()


def scraped(address: str) -> str:
    """What is served there, once it is."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_processes_share_a_port_of_it(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    metrics = f"[::1]:{free_ports(2, '::1')}"
    options = ("--policy-dir", str(tmp_path / "policies"), "--processes", "2", "--metrics-listen", metrics)
    with RouterProcess(tmp_path, *options, host="[::1]"):
        host, port = read_address(metrics, "--metrics-listen")
        for place in (Address(host, port), Address(host, port + 1)):
            deadline = time.monotonic() + 30.0
            # A process reads its policies after it listens.
            while "sparsity_policy_revision" not in scraped(str(place)):
                assert time.monotonic() < deadline, scraped(str(place))
                time.sleep(0.2)


async def test_a_certificate_may_name_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("::1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    fake = FakeWorker("w", DENSE, tmp_path)
    endpoint = listen("[::1]:0", {SERVICE: fake}, 2**26, ServerTls(tmp_path / "cert.pem", tmp_path / "key.pem"))
    await endpoint.server.start()
    async with open_aio_channel(f"[::1]:{endpoint.port}", ClientTls(tmp_path / "ca.pem")) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10.0)
    await endpoint.server.stop(None)
