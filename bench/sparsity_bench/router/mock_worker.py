"""`python -m sparsity_bench.router.mock_worker`: a worker without an engine, for load on a router.

It answers every request with a fixed number of messages, at once or after a fixed time, so that what is measured is
the way there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.channels import MAX_MESSAGE_BYTES
from sparsity_rpc.errors import OverloadedError
from sparsity_serving.server import listen

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
TOKENS_A_MESSAGE = 8
WORDS = "the answer comes in pieces of eight tokens each, as a worker would "
# Between two load reports, at most and at least, as of a real worker.
_REPORT_SECONDS, _SPACING_SECONDS = 0.5, 0.02


class MockWorker:
    """One worker of the dense tier; `sampling.max_new_tokens` says how many messages it sends.

    Args:
        model: the router's name for it.
        digest: of the router's tokenizer.
        places: requests at once; more are refused.
        seconds: that each takes on average, by half more or less: places that free up in step would be no load at all.
    """

    def __init__(self, model: str, digest: str, places: int, seconds: float) -> None:
        self._model, self._digest = model, digest
        self._places = places
        self._seconds = seconds
        self._chance = random.Random(3)
        self._requests = self._finished = self._aborted = 0
        self._changed = asyncio.Event()

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WorkerServiceGenerateResponse]:
        """Messages of eight tokens, then a completion."""
        if self._requests >= self._places:
            raise OverloadedError("the mock worker is full")
        self._requests += 1
        self._changed.set()
        whole = False
        try:
            if self._seconds:
                await asyncio.sleep(self._seconds * self._chance.uniform(0.5, 1.5))
            piece = inference_pb2.GenerateResponse(text=WORDS, token_ids=range(1000, 1000 + TOKENS_A_MESSAGE))
            for _ in range(request.sampling.max_new_tokens - 1):
                yield worker_pb2.WorkerServiceGenerateResponse(response=piece)
            tokens = len(request.prompt.ids) or request.text.max_tokens
            completion = inference_pb2.Completion(
                worker_id="mock",
                finish_reason=inference_pb2.FINISH_REASON_LENGTH,
                usage=inference_pb2.Usage(prompt_tokens=tokens, completion_tokens=TOKENS_A_MESSAGE),
            )
            response = inference_pb2.GenerateResponse(completion=completion)
            yield worker_pb2.WorkerServiceGenerateResponse(response=response)
            whole = True
        finally:
            self._requests -= 1
            self._finished += whole
            self._aborted += not whole
            self._changed.set()

    async def GetCapabilities(self, request: Any, context: Any) -> worker_pb2.GetCapabilitiesResponse:
        """A dense worker of the router's own tokenizer."""
        return worker_pb2.GetCapabilitiesResponse(
            worker_id="mock",
            model=self._model,
            tier=inference_pb2.TIER_DENSE,
            max_requests=self._places,
            tokenizer_digest=self._digest,
        )

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        """The load at every change, not too often, and twice a second."""
        while True:
            yield worker_pb2.WatchLoadResponse(
                requests=self._requests, finished_requests=self._finished, aborted_requests=self._aborted
            )
            self._changed.clear()
            next_at = time.monotonic() + _SPACING_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_SECONDS):
                    await self._changed.wait()
            await asyncio.sleep(max(next_at - time.monotonic(), 0.0))


async def serve(address: str, worker: MockWorker) -> None:
    """Serves until it is ended."""
    endpoint = listen(address, {SERVICE: worker}, MAX_MESSAGE_BYTES)
    await endpoint.server.start()
    await endpoint.health.tell(True)
    await endpoint.server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--places", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    uvloop.run(serve(options.listen, MockWorker(options.model, options.digest, options.places, options.seconds)))
