"""`sparsity check` says what does not work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_cli.main import app
from sparsity_router.config import RouterConfig
from support.fake_worker import FakeWorker, answer
from support.rig import DENSE
from support.router import running
from support.tiny import tiny_model
from support.valkey import Valkey
from typer.testing import CliRunner


async def counts(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    async for response in answer(worker, request, context):
        if response.HasField("completion"):
            response.completion.usage.completion_tokens = 3
        yield response


async def test_stale_policies_fail_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    worker = await FakeWorker("d", DENSE, model, behaviour=counts).start()
    with Valkey() as server:
        config = RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", policy_ttl=2.0)
        async with running(config) as router:
            await asyncio.sleep(1.0)
            command = ["check", "--router", router.address, "--domain", "rag"]
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 0, result.stdout
            server.stop()
            await asyncio.sleep(3.5)
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 4
            assert "FAILED  policies  policies were last confirmed" in result.stdout
    await worker.stop()
