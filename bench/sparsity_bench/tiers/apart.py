"""Workers of one tier each, beside a running one that serves them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sparsity_router.embedded.child import Child
from sparsity_router.embedded.state import Process, Running
from sparsity_rpc.errors import EngineError
from sparsity_serving.addresses import free_port
from sparsity_serving.engines import ECHO

_READY_SECONDS: Final = 600.0
_END_SECONDS: Final = 10.0


@contextmanager
def workers_apart(
    running: Running, profiles: dict[str, str], say: Callable[[str], None]
) -> Iterator[dict[str, Process]]:
    """Serves each tier of the running service by a worker of its own, too; one starts after the other.

    Args:
        running: the service, whose model and engine they take.
        profiles: name or path of the profile of each sparse tier.
        say: gets a line for each that is ready.

    Yields:
        They by tier.

    Raises:
        EngineError: when one is not ready in time.
        ConfigurationError: when one ends.
    """
    with TemporaryDirectory() as folder, ExitStack() as ending:
        workers = {}
        for tier in running.workers:
            name, address = f"worker-{tier}-apart", f"127.0.0.1:{free_port()}"
            arguments = ["-m", "sparsity_worker", "--worker-id", name, "--tiers", tier, "--engine", running.engine]
            arguments += ["--model", running.model_path, "--listen", address]
            if tier in profiles and running.engine != ECHO:
                arguments += ["--profile", profiles[tier]]
            child = Child(name, arguments, address, Path(folder) / f"{name}.log")
            child.start()
            ending.callback(child.stop, _END_SECONDS)
            say(f"{name} serves after {_await(child):.0f} s")
            workers[tier] = Process(name, child.pid, address, str(child.log))
        yield workers


def _await(child: Child) -> float:
    """Seconds until it serves."""
    started = time.monotonic()
    while not child.is_ready():
        child.check_alive()
        if time.monotonic() - started > _READY_SECONDS:
            raise EngineError(f"{child.name} did not get ready within {_READY_SECONDS:.0f} s")
        time.sleep(0.25)
    return time.monotonic() - started
