"""Messages of a peer that cannot be parsed, for which `grpc.aio` gives None: a failure like others, no crash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.fleet.workers import State
from sparsity_router.server import INFERENCE
from sparsity_rpc.errors import EngineError
from sparsity_serving.server import listen
from support.routers.rig import DENSE, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker


class Garbled:
    """What no message begins with."""

    def SerializeToString(self) -> bytes:
        return b"\xff"


@dataclass
class GarblingWorker(FakeWorker):
    """Sends what cannot be read in the place of the messages of some methods."""

    garbles: set[str] = field(default_factory=set)
    after: int = 0

    async def GetCapabilities(self, request: Any, context: Any) -> Any:
        found = await super().GetCapabilities(request, context)
        return Garbled() if "GetCapabilities" in self.garbles else found

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for load in super().WatchLoad(request, context):
            yield Garbled() if "WatchLoad" in self.garbles else load

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        number = 0
        async for response in super().Generate(request, context):
            yield Garbled() if "Generate" in self.garbles and number >= self.after else response
            number += 1


@pytest.mark.parametrize("method", ["GetCapabilities", "WatchLoad"])
async def test_a_worker_that_cannot_be_read_is_not_used_until_it_can(tmp_path: Path, method: str) -> None:
    model = tiny_model(tmp_path)
    bad, good = GarblingWorker("a", DENSE, model), FakeWorker("b", DENSE, model)
    async with rig(model, bad, good) as r:
        seen = r.fleet.workers[0]
        bad.garbles = {method}
        bad.lives += 1
        await until(lambda: seen.state is State.UNREACHABLE and "sent what cannot be read" in seen.problem)
        assert [(await r.generate("hi"))[1].worker_id for _ in range(4)] == ["b"] * 4
        bad.garbles = set()
        await until(lambda: seen.state is State.READY and not seen.problem)


async def test_an_answer_that_cannot_be_read_is_given_by_a_peer(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    bad = GarblingWorker("a", DENSE, model, garbles={"Generate"})
    async with rig(model, bad, FakeWorker("b", DENSE, model, outstanding=10**6)) as r:
        assert (await r.generate("hi"))[1].worker_id == "b"
        assert len(bad.received) == 1
        assert r.fleet.retries.spent == 1


async def test_an_answer_that_cannot_be_read_any_more_is_broken_off(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    async with rig(model, GarblingWorker("a", DENSE, model, garbles={"Generate"}, after=1)) as r:
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.ABORTED
        assert "sent what cannot be read" in error.details()


class GarblingRouter:
    """A router that cannot be read, or that names a request which cannot."""

    def __init__(self, *, names: bool) -> None:
        self._names = names

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield Garbled()

    async def Route(self, request: Any, context: Any) -> Any:
        return inference_pb2.RouteResponse(worker_request=b"\xff", endpoint="[::1]:1") if self._names else Garbled()

    async def Explain(self, request: Any, context: Any) -> Any:
        return Garbled()

    async def ReportOutcome(self, request: Any, context: Any) -> Any:
        return Garbled()


@pytest.mark.parametrize("names", [False, True])
async def test_a_router_that_cannot_be_read_is_an_error_of_the_clients_tree(names: bool) -> None:
    endpoint = listen("127.0.0.1:0", {INFERENCE: GarblingRouter(names=names)}, 2**20)
    await endpoint.server.start()
    request = make_request("hi")
    async with AsyncWireClient(f"127.0.0.1:{endpoint.port}") as client:
        for direct in (False, True):
            with pytest.raises(EngineError, match="cannot be read"):
                async for _ in client.generate(request, 10.0, direct=direct):
                    pass
        for call in (client.explain(request), client.report_outcome("d", 1.0, "quality")):
            with pytest.raises(EngineError, match="cannot be read"):
                await call
    await endpoint.server.stop(None)
