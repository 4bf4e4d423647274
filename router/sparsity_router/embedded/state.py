"""The note that a running `sparsity up` leaves for the other commands."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from sparsity_rpc.errors import NotFoundError
from sparsity_serving.engines import SGLANG


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the service."""

    name: str
    pid: int
    address: str
    log: str


@dataclass(frozen=True, slots=True)
class Running:
    """What runs.

    Attributes:
        supervisor: pid of `sparsity up`.
        router: the router's address.
        redis_url: the policy store, without credentials.
        model_path: the served model.
        workers: the worker of each tier; one process may serve all of them.
        ready_seconds: from the start of `sparsity up` to ready.
        engine: of the workers.
    """

    supervisor: int
    router: str
    redis_url: str
    model_path: str
    workers: dict[str, Process]
    ready_seconds: float
    engine: str = SGLANG

    @property
    def is_shared(self) -> bool:
        """Whether one worker serves every tier."""
        return len({worker.name for worker in self.workers.values()}) == 1

    @property
    def shape(self) -> str:
        """What runs, in words."""
        count = len({worker.name for worker in self.workers.values()})
        return f"Valkey, router, {'a worker of every tier' if self.is_shared else f'{count} workers'}"

    def write(self, folder: Path) -> None:
        """Replaces the note in one step."""
        path = folder / "up.json"
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(self), indent=2))
        os.replace(scratch, path)


def read_running(folder: Path) -> Running:
    """Reads the note of the service that runs now.

    Raises:
        NotFoundError: when none does.
    """
    try:
        fields = json.loads((folder / "up.json").read_text())
        workers = {tier: Process(**process) for tier, process in fields.pop("workers").items()}
        running = Running(**fields, workers=workers)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NotFoundError("no embedded service runs here; start one with `make run` or `sparsity up`") from error
    if not psutil.pid_exists(running.supervisor):
        raise NotFoundError("the embedded service has ended; start it with `make run` or `sparsity up`")
    return running
