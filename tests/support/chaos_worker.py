"""`python -m support.chaos_worker`: a fake worker in a process of its own, which tests may kill."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2
from support.fake_worker import FakeWorker, answer


async def slow(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """A quarter of a second to the first token, then one every tenth."""
    await asyncio.sleep(0.25)
    for _ in range(20):
        yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        await asyncio.sleep(0.1)
    async for response in answer(worker, request, context):
        yield response


async def _serve(options: argparse.Namespace) -> None:
    tier = inference_pb2.Tier.Value(f"TIER_{options.tier.upper()}")
    behaviour = slow if options.slow else answer
    worker = await FakeWorker(options.name, tier, options.model, behaviour=behaviour, places=options.places).start()
    print(worker.address, flush=True)
    await asyncio.Event().wait()


@contextmanager
def worker_process(model: Path, name: str, tier: str = "dense", *, slow: bool = False, places: int = 1000) -> Any:
    """The process, with its ``address``."""
    command = [sys.executable, "-m", "support.chaos_worker", "--name", name, "--tier", tier, "--model", str(model)]
    command += ["--places", str(places), *(["--slow"] if slow else [])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.address = process.stdout.readline().strip()  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--tier", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--places", type=int, default=1000)
    parser.add_argument("--slow", action="store_true")
    asyncio.run(_serve(parser.parse_args()))
