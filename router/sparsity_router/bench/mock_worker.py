"""`python -m sparsity_router.bench.mock_worker`: a worker without an engine, for load on a router.

It answers every request with a fixed number of messages at once, so that what is measured is the way there and back.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from grpc_health.v1 import health_pb2
from sparsity.channels import MAX_MESSAGE_BYTES
from sparsity.serving import listen
from sparsity.v1 import inference_pb2, worker_pb2

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
_WORDS = "the answer comes in pieces of eight tokens each, as a worker would "


class MockWorker:
    """One worker of the dense tier; `sampling.max_new_tokens` says how many messages it sends."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WorkerServiceGenerateResponse]:
        """Messages of eight tokens, then a completion."""
        piece = inference_pb2.GenerateResponse(text=_WORDS, token_ids=range(1000, 1008))
        for _ in range(request.sampling.max_new_tokens - 1):
            yield worker_pb2.WorkerServiceGenerateResponse(response=piece)
        completion = inference_pb2.Completion(
            worker_id="mock",
            finish_reason=inference_pb2.FINISH_REASON_LENGTH,
            usage=inference_pb2.Usage(
                prompt_tokens=len(request.prompt.ids) or request.text.max_tokens, completion_tokens=8
            ),
        )
        yield worker_pb2.WorkerServiceGenerateResponse(response=inference_pb2.GenerateResponse(completion=completion))

    async def GetCapabilities(self, request: Any, context: Any) -> worker_pb2.GetCapabilitiesResponse:
        """A dense worker of the router's own tokenizer."""
        return worker_pb2.GetCapabilitiesResponse(
            worker_id="mock", tier=inference_pb2.TIER_DENSE, max_requests=10_000, tokenizer_digest=self._digest
        )

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        """Never busy."""
        while True:
            yield worker_pb2.WatchLoadResponse()
            await asyncio.sleep(0.5)


async def serve(address: str, digest: str) -> None:
    """Serves until it is ended."""
    endpoint = listen(address, {SERVICE: MockWorker(digest)}, MAX_MESSAGE_BYTES)
    await endpoint.server.start()
    await endpoint.health.set("", health_pb2.HealthCheckResponse.SERVING)
    await endpoint.server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--digest", required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.listen, options.digest))
