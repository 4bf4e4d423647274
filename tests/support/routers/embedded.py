"""`sparsity up` as a process, in a state folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_client.wire import WireClient
from support.ports import free_port, free_ports

SPARSITY = str(Path(sys.executable).parent / "sparsity")


@dataclass
class Embedded:
    """The running service."""

    process: subprocess.Popen[str]
    router: str
    state: Path
    metrics_port: int
    http: str
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

    def client(self) -> WireClient:
        return WireClient(self.router)

    def worker_address(self, tier: str) -> str:
        note = json.loads((self.state / "up.json").read_text())
        return str(note["workers"][tier]["address"])

    def said(self) -> str:
        """What it printed so far."""
        return (self.state / "up.log").read_text()


@contextmanager
def embedded(state: Path, *options: str, seconds: float, **environment: str) -> Iterator[Embedded]:
    """Starts it with ``options``, and waits until it is ready, for ``seconds`` at most."""
    # The router's metrics, and those of its workers, three at most.
    router, metrics = f"127.0.0.1:{free_port()}", free_ports(4)
    own = os.environ | {"SPARSITY_ROUTER": router, "SPARSITY_STATE": str(state), "NO_COLOR": "1"} | environment
    http = f"127.0.0.1:{free_port()}"
    command = [SPARSITY, "up", "--listen", router, "--metrics-port", str(metrics), "--http", http, *options]
    with open(state / "up.log", "w") as log:
        process = subprocess.Popen(command, env=own, stderr=log, stdout=log, text=True)
    running = Embedded(process, router, state, metrics, http, own)
    try:
        deadline = time.monotonic() + seconds
        while not (state / "up.json").exists():
            assert process.poll() is None, running.said()
            assert time.monotonic() < deadline, running.said()
            time.sleep(0.1)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
