"""A router in a process of its own, for tests that are not asynchronous."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.ports import free_port
from support.tiny import tiny_model


class RouterProcess:
    """`python -m sparsity_router`, or another module, over a tiny model; it answers on entry, and is ended on exit.

    Attributes:
        early: signals that come before its first instruction, and act once it lets them.
    """

    early: tuple[signal.Signals, ...] = ()

    def __init__(
        self, folder: Path, *arguments: str, module: tuple[str, ...] = ("sparsity_router",), host: str = "127.0.0.1"
    ) -> None:
        self.address = f"{host}:{free_port(host.strip('[]'))}"
        command = [sys.executable, "-m", *module, "--model", str(tiny_model(folder / "model"))]
        self._command = [*command, "--worker", "127.0.0.1:1", "--listen", self.address, "--detect", "off", *arguments]
        # Beside the tests, the code that they run: an environment may be that of another checkout.
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        self._environment = os.environ | {"PYTHONPATH": path}
        self.log = folder / f"router-{self.address.rpartition(':')[2]}.log"

    def __enter__(self) -> RouterProcess:
        with open(self.log, "ab") as log:
            block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, self.early)
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, preexec_fn=block
            )
        for number in self.early:
            self.signal(number)
        deadline = time.monotonic() + 60
        while not self.serving():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(60)

    def serving(self) -> bool:
        """Whether it answers: without a worker it wants no traffic."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND
            return True

    def alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        return self._process.pid
