"""The real system: `sparsity up` with three SGLang engines, Valkey and an OTLP receiver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sparsity.serving import free_port
from sparsity_client import Client
from support.otlp import Receiver

SPARSITY = str(Path(sys.executable).parent / "sparsity")
START_SECONDS = 900.0


@dataclass
class System:
    """The running system."""

    process: subprocess.Popen[str]
    router: str
    state: Path
    receiver: Receiver
    metrics_port: int
    environment: dict[str, str]

    def cli(self, *arguments: str, check: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs the command line against it."""
        result = subprocess.run(
            [SPARSITY, *arguments], env=self.environment, capture_output=True, text=True, timeout=600, **options
        )
        if check is not None:
            assert result.returncode == check, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: str) -> Any:
        """Its answer to a command with --json."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    def client(self) -> Client:
        return Client(self.router)

    def worker_address(self, tier: str) -> str:
        note = json.loads((self.state / "up.json").read_text())
        return str(note["workers"][tier]["address"])


def free_block() -> int:
    """The first of four free ports in a row, for the metrics of a router and three workers."""
    while True:
        first = free_port()
        try:
            for port in range(first + 1, first + 4):
                socket.create_server(("127.0.0.1", port)).close()
        except (OSError, OverflowError):
            continue
        return first


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    state = tmp_path_factory.mktemp("state")
    receiver = Receiver()
    router = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "SPARSITY_ROUTER": router,
        "SPARSITY_STATE": str(state),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "NO_COLOR": "1",
    }
    log = open(state / "up.log", "w")  # noqa: SIM115
    metrics = free_block()
    command = [SPARSITY, "up", "--listen", router, "--metrics-port", str(metrics)]
    process = subprocess.Popen(command, env=environment, stderr=log, stdout=log, text=True)
    deadline = time.monotonic() + START_SECONDS
    while not (state / "up.json").exists():
        assert process.poll() is None, (state / "up.log").read_text()
        assert time.monotonic() < deadline, (state / "up.log").read_text()
        time.sleep(0.5)
    yield System(process, router, state, receiver, metrics, environment)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    log.close()
    receiver.stop()
