"""What hostile callers and editors send, through real processes; a line each in `make chaos`."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from support.chaos_worker import worker_process
from support.router import failure, running
from support.tiny import tiny_model
from support.valkey import Valkey

pytestmark = pytest.mark.chaos


async def test_a_poisonous_request_ends_two_workers_and_no_third(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    with ExitStack() as stack:
        store = stack.enter_context(Valkey())
        workers = [stack.enter_context(worker_process(model, f"w{number}")) for number in range(3)]
        config = RouterConfig(model, tuple(worker.address for worker in workers), store.url, "127.0.0.1:0")
        async with running(config) as router:
            await asyncio.sleep(1.5)

            async def send(text: str) -> str:
                stream = router.inference.Generate(make_request(text, domain="rag"), timeout=15.0)
                return "".join([response.text async for response in stream])

            error = await failure(send("poison"))
            assert error.code() is grpc.StatusCode.ABORTED
            await asyncio.sleep(0.2)
            dead = [worker.poll() is not None for worker in workers]
            print(f"sent `poison`: {error.code().name}, {sum(dead)} of 3 workers died; the next answers", end=" ")
            assert sum(dead) == 2
            assert (await send("hi")).endswith("abc")
