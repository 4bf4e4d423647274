"""What requests to stock servers may ask for at most: as of workers of ours, before the server sees them."""

from __future__ import annotations

from pathlib import Path

import grpc
from sparsity_client.wire import make_request
from sparsity_serving.fields.logprobs import MAX_PROMPT_TOKENS
from support.fake_stock import FakeStock
from support.rig import Rig, refusal, rig
from support.tiny import tiny_model


async def test_log_probabilities_of_long_prompts_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", 2 * MAX_PROMPT_TOKENS)
    server = await FakeStock(model).start()
    try:
        async with rig(model, places=(server.address,)) as r:
            error = await refusal(_scored(r, MAX_PROMPT_TOKENS + 1))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert f"logprobs.prompt: is for prompts of {MAX_PROMPT_TOKENS} tokens at most" in error.details()
            assert not server.received
            await _scored(r, MAX_PROMPT_TOKENS)
            assert len(server.received[0].tokenized.input_ids) == MAX_PROMPT_TOKENS
    finally:
        await server.stop()


async def _scored(r: Rig, tokens: int) -> None:
    request = make_request([1] * tokens, domain="medical")
    request.logprobs.prompt = True
    async for _ in r.stub.Generate(request, timeout=10.0):
        pass
