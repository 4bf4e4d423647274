"""Calls of stock servers that fail on the router's side of them: their engines are told to stop, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import worker_pb2
from sparsity_router.fleet.stock.call import StockCall
from support.routers.rig import refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_stock import FakeStock, hangs


async def test_a_deadline_ends_the_engines_request(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    server = await FakeStock(model, hangs).start()
    try:
        async with rig(model, places=(server.address,)) as r:
            request = worker_pb2.WorkerServiceGenerateRequest(request_id="late")
            request.prompt.ids.extend([1, 2])
            call: Any = r.fleet.workers[0].stub.Generate(request, timeout=0.5)
            assert (await anext(call)).response.text == "x"
            error = await refusal(anext(call))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: server.aborted == ["late."])
            assert not call.cancel()
    finally:
        await server.stop()


class Unreadable:
    """A call whose messages cannot be parsed."""

    cancelled = False

    async def read(self) -> None:
        """`grpc.aio` gives None for them."""

    def cancel(self) -> bool:
        self.cancelled = True
        return True


async def test_what_cannot_be_read_ends_the_call_and_the_engines_request() -> None:
    inner, aborted = Unreadable(), []

    async def opening() -> Any:
        return inner, None

    call = StockCall(opening, lambda: aborted.append(True), "stock", "")
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be read"):
        await anext(call)
    assert (inner.cancelled, aborted) == (True, [True])
    with pytest.raises(StopAsyncIteration):
        await anext(call)
