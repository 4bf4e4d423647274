"""Child processes of a benchmark: started together, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sparsity_router.embedded.child import Child
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_serving.addresses import free_port

# Until every process serves: a router that can use no worker never does.
START_SECONDS = 60.0


def free_address() -> str:
    """An address of the loopback that nothing listens on now."""
    return f"127.0.0.1:{free_port()}"


def mock_worker(folder: Path, tokenizer: ModelTokenizer, *, places: int = 10_000, seconds: float = 0.0) -> Child:
    """A worker without an engine, which takes ``places`` requests at once, ``seconds`` each."""
    address = free_address()
    arguments = ["-m", "sparsity_bench.router.mock_worker", "--listen", address]
    arguments += ["--model", tokenizer.served.name, "--digest", tokenizer.digest]
    arguments += ["--places", str(places), "--seconds", str(seconds)]
    return Child(f"mock-worker-{address.rpartition(':')[2]}", arguments, address, folder / "worker.log")


def router(folder: Path, model: Path, redis_port: int, worker: str, *options: str) -> Child:
    """A router over one worker, which signs leases."""
    key = folder / "key"
    if not key.exists():
        key.write_text(secrets.token_urlsafe(32))
    address = free_address()
    arguments = ["-m", "sparsity_router", "--model", str(model), "--worker", worker, "--listen", address]
    arguments += ["--redis-url", f"redis://127.0.0.1:{redis_port}/0", "--lease-key-file", str(key), *options]
    return Child("router", arguments, address, folder / f"router-{address.rpartition(':')[2]}.log")


def roomy(model: Path, folder: Path, tokens: int) -> Path:
    """The model with room for ``tokens``, so that long prompts are routed; nobody computes with it."""
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": tokens}
    copy = folder / model.name
    copy.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (copy / file.name).symlink_to(file.resolve())
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@asynccontextmanager
async def running(*children: Child) -> AsyncIterator[None]:
    """Starts the processes, waits until they serve, and ends them.

    Raises:
        ConfigurationError: when one ends before it serves.
        EngineError: when one does not serve in time.
    """
    until = time.monotonic() + START_SECONDS
    try:
        # All before the first health check: a process that talks gRPC should not fork.
        for child in children:
            child.start()
        for child in children:
            while not await asyncio.to_thread(child.is_ready):
                child.check_alive()
                if time.monotonic() > until:
                    raise EngineError(f"{child.name} did not serve in {START_SECONDS:.0f} s; log: {child.log}")
                await asyncio.sleep(0.05)
        yield
    finally:
        for child in reversed(children):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(child.stop, 5.0)
