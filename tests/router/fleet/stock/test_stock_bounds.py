"""What requests to stock servers may ask for at most: as of workers of ours, before the server sees them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from sparsity.v1 import worker_pb2
from sparsity_client.wire import make_request
from sparsity_router.fleet.needs import Need, Needs, least_tokens
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.stock.requests import check_room
from sparsity_router.fleet.workers import State
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import InvalidRequestError, OverloadedError, TokenCountError
from sparsity_serving.fields.logprobs import MAX_PROMPT_TOKENS
from support.routers.rig import Rig, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_stock import FakeStock


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


async def test_a_long_request_goes_past_small_caches(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    small, large = FakeStock(model, kv_tokens=100), FakeStock(model, kv_tokens=200)
    places = []
    for server in (small, large):
        places.append((await server.start()).address)
    try:
        async with rig(model, places=tuple(places)) as r:
            names = [place.removeprefix("sglang+grpc://") for place in places]
            found = {(await r.generate("hi", domain="medical", max_new_tokens=150))[1].worker_id for _ in range(6)}
            assert found == {names[1]}
            # The small one still takes what fits.
            assert all(worker.state is State.READY for worker in r.fleet.workers)
            found = {(await r.generate("hi", domain="medical", max_new_tokens=50))[1].worker_id for _ in range(30)}
            assert names[0] in found
            # Where it would fit is busy: that is no mistake of the caller's.
            large.requests = 8
            await until(lambda: r.fleet.workers[1].state is State.FULL)
            error = await refusal(r.generate("hi", domain="medical", max_new_tokens=150))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            large.paused = True
            await until(lambda: r.fleet.workers[1].state is State.DRAINING)
            error = await refusal(r.generate("hi", domain="medical", max_new_tokens=150))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            # Nobody has room for it, whoever comes back.
            error = await refusal(r.generate("hi", domain="medical", max_new_tokens=300))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "sampling.max_new_tokens: a KV cache for as many tokens" in error.details()
    finally:
        await small.stop()
        await large.stop()


async def test_a_text_of_about_so_many_tokens_is_counted_where_its_room_hangs_on_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    tokenizer = ModelTokenizer(model)
    stock = StockModel.of(tokenizer.tokenizer, tokenizer.served, tokenizer.digest, tokenizer.config)
    request = worker_pb2.WorkerServiceGenerateRequest()
    request.sampling.max_new_tokens = 50
    request.text.text, request.text.min_tokens, request.text.max_tokens = "hi", 1, 100
    assert least_tokens(request) == 51
    check_room(request, 50, 100, stock)
    with pytest.raises(TokenCountError, match=r"51 prompt tokens and 50 new ones .* KV cache, which holds 100"):
        check_room(request, 51, 100, stock)
    request.ClearField("text")
    request.prompt.ids.extend([1] * 51)
    assert least_tokens(request) == 101
    # It came back smaller since it was picked.
    with pytest.raises(OverloadedError):
        check_room(request, 51, 100, stock)
    check_room(request, 51, 0, stock)
    with pytest.raises(
        InvalidRequestError,
        match="new ones are too many, the prompt is too long for so many: this model's maximum context length is 512",
    ):
        check_room(request, 470, 0, stock)
    # Where its caller does not say, what is left bounds the answer.
    request.sampling.ClearField("max_new_tokens")
    request.default_max_new_tokens = 300
    assert [check_room(request, *room, stock) for room in ((51, 0), (400, 0), (51, 100))] == [300, 112, 49]


def test_needs_that_hang_on_room_wait_in_turns_of_their_own() -> None:
    plain = frozenset({Need.FORMAT})
    assert Needs(plain, 100) == Needs(plain, 100) != Needs(plain, 200) != Needs(plain) != Needs(plain, 100)
    assert len({Needs(plain, 100), Needs(plain, 100), Needs(plain, 200), Needs(plain)}) == 3
    met = [Needs(plain, 100).met(frozenset(), room) for room in (0, 50, 100, 101)]
    assert met == [True, False, False, True]
    assert Needs(plain).met(frozenset(), 1)
    assert not Needs(plain).met(plain, 0)
