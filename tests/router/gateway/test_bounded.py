"""What one caller sends costs the others nothing: not a worker, not the event loop, not the router's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_router.gateway.declared import read_headers
from support.fake_worker import FakeWorker, answer
from support.http_door import http_door
from support.rig import DENSE
from support.tiny import tiny_model

# More than gRPC's servers take without a doubt (8 KiB), and next to what they take at all.
STATE = ",".join(f"{'k' * 120}{number}={'v' * 130}" for number in range(31))
BAGGAGE = ",".join(f"{'b' * 20}{number}={'v' * 60}" for number in range(90))
TRACE = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": STATE, "baggage": BAGGAGE}


async def test_what_a_caller_tells_of_its_trace_refuses_no_worker(tmp_path: Path) -> None:
    """16 KiB of metadata are answered by gRPC itself, in the words of a worker that is full."""
    told: list[dict[str, Any]] = []

    async def listen(worker: FakeWorker, request: Any, context: Any) -> Any:
        told.append(dict(context.invocation_metadata()))
        async for message in answer(worker, request, context):
            yield message

    assert sum(map(len, TRACE.values())) > 15_000
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=listen)
    async with http_door(tmp_path, worker) as door:
        assert (await door.chat(headers=TRACE)).status_code == 200
        # A gRPC caller's own does not come in where it is as much; what does is not passed on either.
        for state in (STATE[:7000].rpartition(",")[0], "vendor=x"):
            metadata = (("traceparent", TRACE["traceparent"]), ("tracestate", state), ("baggage", "a=b"))
            request = inference_pb2.GenerateRequest(text="hi")
            async for _ in door.router.inference.Generate(request, metadata=metadata):
                pass
        assert [found["traceparent"][:35] for found in told] == [TRACE["traceparent"][:35]] * 3
        assert [found.get("tracestate") for found in told] == [None, None, "vendor=x"]
        assert not any("baggage" in found for found in told)


def test_the_pipeline_gets_a_key_and_a_trace_of_the_headers_and_no_more() -> None:
    sent = {**TRACE, "authorization": "Bearer k", "cookie": "c", "sparsity-actor": "root", "x-sparsity-domain": "low"}
    called = read_headers([(name.encode(), value.encode()) for name, value in sent.items()])
    assert called.metadata == (("traceparent", TRACE["traceparent"]), ("authorization", "Bearer k"))
    assert called.declared == {"domain": "low"}
