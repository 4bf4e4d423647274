"""`python -m support.workers.chaos_worker`: a fake worker in a process of its own, which tests may kill."""

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
from support.workers.fake_worker import FakeWorker, answer


async def slow(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """A quarter of a second to the first token, then one every tenth; a poisonous text ends the process."""
    if "poison" in request.text.text:
        os._exit(1)
    await asyncio.sleep(0.25)
    for _ in range(20):
        yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        await asyncio.sleep(0.1)
    async for response in answer(worker, request, context):
        yield response


async def _serve(options: argparse.Namespace) -> None:
    dense = inference_pb2.TIER_DENSE
    worker = await FakeWorker(options.name, dense, options.model, behaviour=slow, places=1000).start()
    print(worker.address, flush=True)
    await asyncio.Event().wait()


@contextmanager
def worker_process(model: Path, name: str) -> Any:
    """The process, with its ``address``."""
    command = [sys.executable, "-m", "support.workers.chaos_worker", "--name", name, "--model", str(model)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
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
    parser.add_argument("--model", required=True, type=Path)
    asyncio.run(_serve(parser.parse_args()))
