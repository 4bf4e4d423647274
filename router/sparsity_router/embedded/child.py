"""One child process of the supervisor, with its log file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import open_channel

from sparsity_router.processes.lifeline import end_with_parent


@dataclass(slots=True)
class Child:
    """A restartable process that serves gRPC health on ``address``."""

    name: str
    arguments: list[str]
    address: str
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process; its output is appended to the log."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self.environment,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
                start_new_session=True,
            )

    def command(self) -> list[str]:
        """What is started: a module of ours."""
        return [sys.executable, *self.arguments]

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll() if self._process else None

    def is_ready(self) -> bool:
        """Whether its health service says SERVING."""
        with open_channel(self.address, None) as channel:
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def check_alive(self) -> None:
        """Raises ConfigurationError with the end of its log when it has ended."""
        if self.exit_code is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            own = [line for line in lines if line.startswith("sparsity-")] or lines[-5:]
            raise ConfigurationError(
                f"{self.name} ended with {self.exit_code}: {own[-1] if own else 'no output'}; log: {self.log}"
            )

    def stop(self, seconds: float) -> None:
        """Ends it: first politely, after ``seconds`` by force, with all it started."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            deadline = time.monotonic() + seconds
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
