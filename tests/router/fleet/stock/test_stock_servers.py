"""Servers of stock SGLang as dense workers, by SGLang's own contract: what they are asked, and what they are not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide
from sparsity_policies.model import Signals
from sparsity_router.fleet.discovery import discover
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.needs import Need, Needs
from sparsity_router.fleet.patience import Patience
from sparsity_router.fleet.stock.facts import DENSE_BACKENDS
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.stock.requests import prompt_of
from sparsity_router.fleet.workers import State
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_router.relaying.placing import Tried, nobody
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, UnavailableError
from sparsity_rpc.status import to_error
from support.routers.rig import AGGRESSIVE, DENSE, LONG, Rig, refusal, rig, until
from support.stores.snapshots import snapshot
from support.tiny import tiny_model, tiny_tokenizer
from support.workers.fake_stock import LIKELY, FakeStock, chunk, complete, fails, hangs, says, tokens_of
from support.workers.fake_worker import FakeWorker, fail

TOOL = inference_pb2.Tool(name="weather")
SCHEMA = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


@asynccontextmanager
async def over(
    model: Path, *servers: FakeStock, workers: tuple[FakeWorker, ...] = (), **options: Any
) -> AsyncIterator[Rig]:
    """A router over stock servers, and over workers of ours beside them."""
    for server in servers:
        await server.start()
    try:
        async with rig(model, *workers, places=tuple(server.address for server in servers), **options) as r:
            yield r
    finally:
        for server in servers:
            await server.stop()


async def whole(r: Rig, request: Any) -> list[Any]:
    return [response async for response in r.stub.Generate(request, timeout=10.0)]


def chat(content: str = "hi") -> inference_pb2.GenerateRequest:
    message = inference_pb2.ChatMessage(role="user", content=content)
    return inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(messages=[message]))


async def test_a_dense_request_is_answered_by_its_word(model: Path) -> None:
    server = FakeStock(model, says("abc", at_once=2))
    async with over(model, server) as r:
        text, completion = await r.generate("hi", domain="medical")
        assert text == "abc"
        assert (completion.decision.tier, completion.finish_reason) == (DENSE, inference_pb2.FINISH_REASON_STOP)
        assert not completion.HasField("sparsity")
        assert completion.unreported == "dense by the server's word: stock SGLang, attention backend fa3"
        assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (
            len(server.received[0].tokenized.input_ids),
            3,
        )
        assert (completion.usage.cached_tokens, completion.model) == (2, "tiny")
        assert completion.worker_id == server.address.removeprefix("sglang+grpc://")
        (worker,) = r.fleet.workers
        assert (worker.tiers, worker.state, worker.served[DENSE].profile) == ({DENSE}, State.READY, "dense")


async def test_what_is_asked_reaches_it_in_its_words(model: Path) -> None:
    server = FakeStock(model)
    async with over(model, server) as r:
        request = make_request("hi", domain="medical")
        for name, value in (("max_new_tokens", 7), ("temperature", 0.5), ("top_k", 3), ("min_p", 0.125)):
            setattr(request.sampling, name, value)
        request.sampling.stop.append("never")
        request.sampling.logit_bias.add(token_id=5, bias=-2)
        request.sampling.response_format.json_schema = SCHEMA
        await whole(r, request)
        await whole(r, make_request("hi", domain="medical"))
        full, plain = (each.sampling_params for each in server.received)
        assert (full.max_new_tokens, full.temperature, full.top_k, full.min_p) == (7, 0.5, 3, 0.125)
        assert (list(full.stop), dict(full.logit_bias), full.json_schema) == (["never"], {"5": -2.0}, SCHEMA)
        # What reads as 0 where it is unset would mean something else.
        assert (plain.temperature, plain.top_p, plain.top_k, plain.repetition_penalty) == (0.0, 1.0, -1, 1.0)
        assert (plain.max_new_tokens, plain.n, plain.WhichOneof("constraint")) == (128, 1, None)
        assert all(each.stream and each.request_id.endswith(".1.") for each in server.received)


async def test_text_is_whole_characters_without_stop_texts(model: Path) -> None:
    server = FakeStock(model, says("naïve 🐸 END and more"))
    async with over(model, server) as r:
        request = make_request("hi", domain="medical")
        request.sampling.stop.append(" END")
        found = await whole(r, request)
        assert "".join(each.text for each in found) == "naïve 🐸"
        assert all("\ufffd" not in each.text for each in found)
        assert found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_STOP
        # It may not have seen it yet.
        await until(lambda: server.aborted == [server.received[0].request_id])


async def test_log_probabilities_go_with_their_tokens(model: Path) -> None:
    async def behave(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
        first = chunk(request, tokens_of("o"), 1)
        scores = first.chunk.input_logprobs
        scores.token_ids.extend(request.tokenized.input_ids)
        scores.token_logprobs.add()
        scores.token_logprobs.add(value=-3.5)
        yield first
        yield chunk(request, tokens_of("k"), 2)
        yield complete(request, 2)

    async with over(model, FakeStock(model, behave)) as r:
        request = make_request("hi", domain="medical")
        request.logprobs.top, request.logprobs.prompt = 2, True
        found = await whole(r, request)
        told = [place for each in found for place in each.logprobs]
        assert [(place.token, place.logprob) for place in told] == [(b"o", LIKELY), (b"k", LIKELY)]
        assert [(each.token, each.logprob) for each in told[0].top] == [(b"o", LIKELY), (b"p", LIKELY - 1)]
        prompt = [(each.token, each.HasField("logprob"), each.logprob) for each in found[0].prompt_logprobs]
        assert prompt == [(b"h", False, 0.0), (b"i", True, -3.5)]


async def test_thoughts_are_apart_where_the_model_marks_them(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": 259}
    (model / "config.json").write_text(json.dumps(config))

    async def behave(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
        yield chunk(request, [257, *tokens_of("hm"), 258, *tokens_of("o")], 5)
        yield chunk(request, tokens_of("k"), 6)
        yield complete(request, 6)

    async with over(model, FakeStock(model, behave)) as r:
        found = await whole(r, chat())
        assert ("".join(each.reasoning for each in found), "".join(each.text for each in found)) == ("hm", "ok")
        assert found[-1].completion.usage.reasoning_tokens == 4
        # What is no chat is left as it is.
        text, _ = await r.generate("hi", domain="medical")
        assert text == "<think>hm</think>ok"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backend": None}, "does not say which attention backend"),
        ({"backend": "dsa"}, "its attention backend is dsa, which is not known to attend everything"),
        ({"arguments": {"decode_attention_backend": "sparsity"}}, "its attention backend is sparsity"),
        ({"arguments": {"enable_hisparse": True}}, "it runs with enable_hisparse"),
        ({"tokenizer": b"{}"}, "its tokenizer differs"),
        ({"kind": "qwen2"}, "its model is a qwen2, and the router's a llama"),
        ({"generates": False}, "it generates nothing"),
    ],
)
async def test_what_is_no_dense_server_of_the_model_is_not_used(
    changes: dict[str, Any], problem: str, model: Path
) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "llama"}
    (model / "config.json").write_text(json.dumps(config))
    server = FakeStock(model, **changes)
    assert "sparsity" not in DENSE_BACKENDS
    async with over(model, server) as r:
        (worker,) = r.fleet.workers
        assert worker.state is State.INCOMPATIBLE
        assert problem in worker.problem
        error = await refusal(whole(r, make_request("hi", domain="medical")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert not server.received


async def test_what_it_lacks_goes_to_others_or_is_refused_by_name(model: Path) -> None:
    server, ours = FakeStock(model), FakeWorker("ours", DENSE, model, outstanding=10**6)
    wants: dict[str, Any] = {}
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + "{# tools: <tool_call><function=name> #}{{ tools or '' }}")
    wants["tools"] = chat()
    wants["tools"].tools.append(TOOL)
    wants["sampling.seed"] = make_request("hi")
    wants["sampling.seed"].sampling.seed, wants["sampling.seed"].sampling.temperature = 7, 0.5
    wants["sampling.response_format"] = make_request("hi")
    wants["sampling.response_format"].sampling.response_format.regex = "a+"
    wants["logprobs"] = make_request("hi")
    wants["logprobs"].logprobs.top, wants["logprobs"].sampling.temperature = 1, 0.5
    async with over(model, server, workers=(ours,)) as r:
        for request in wants.values():
            assert (await whole(r, request))[-1].completion.worker_id == "ours"
    await server.start()
    server.received.clear()
    async with rig(model, places=(server.address,)) as r:
        for field, request in wants.items():
            error = await refusal(whole(r, request))
            (violation,) = to_error(error).violations  # type: ignore[attr-defined]
            assert violation.field == field, violation
            assert "stock SGLang" in violation.problem
        assert not server.received
        # Of a greedy request a seed changes nothing.
        wants["sampling.seed"].sampling.temperature = 0
        assert (await whole(r, wants["sampling.seed"]))[-1].completion.worker_id
    await server.stop()


async def test_it_serves_what_policy_gives_densely_and_nothing_else(model: Path) -> None:
    server, sparse = FakeStock(model), FakeWorker("a", AGGRESSIVE, model)
    async with over(model, server, workers=(sparse,)) as r:
        assert (await r.generate(LONG))[1].worker_id == "a"
        assert not server.received
        sparse.behaviour = fail(grpc.StatusCode.INTERNAL)
        _, completion = await r.generate(LONG)
        assert (completion.decision.tier, completion.decision.policy_tier) == (DENSE, AGGRESSIVE)
        assert len(server.received) == 1


async def test_who_leaves_ends_the_engines_request(model: Path) -> None:
    server = FakeStock(model, hangs)
    async with over(model, server) as r:
        call = r.stub.Generate(make_request("hi", domain="medical"))
        assert (await call.read()).text == "x"
        call.cancel()
        await until(lambda: bool(server.cancelled and server.aborted))
        assert server.aborted == [server.received[0].request_id]
        assert r.fleet.workers[0].in_flight == 0


async def test_a_killed_server_falls_back_as_policy_says(model: Path) -> None:
    """Before its first token a request goes to another dense worker; after it nothing is replayed."""
    server, peer = FakeStock(model, hangs), FakeStock(model)
    async with over(model, server) as r:
        call = r.stub.Generate(make_request("hi", domain="medical"))
        assert (await call.read()).text == "x"
        await server.stop()
        error = await refusal(call.read())
        assert (error.code(), "failed mid-stream" in error.details()) == (grpc.StatusCode.ABORTED, True)
        gone = await refusal(whole(r, make_request("hi", domain="medical")))
        assert gone.code() is grpc.StatusCode.UNAVAILABLE
        await server.start()
    server.behaviour = fails(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    async with over(model, server, peer) as r:
        found = {(await r.generate("hi", domain="medical"))[1].worker_id for _ in range(6)}
        assert found == {peer.address.removeprefix("sglang+grpc://")}


@pytest.mark.parametrize("known", [False, True])
async def test_who_answers_once_a_long_text_is_tokens_is_not_who_was_picked(
    model: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Another server listens there by then, and sparsely, whether or not it was asked what it is."""
    server, begun, go_on = FakeStock(model), asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await prompt_of(*arguments)

    monkeypatch.setattr("sparsity_router.fleet.stock.server.prompt_of", slowly)
    async with over(model, server) as r:
        (worker,) = r.fleet.workers
        asking = asyncio.create_task(r.generate("hi", domain="medical"))
        await begun.wait()
        server.backend = "nsa"
        await server.restart()
        state = State.INCOMPATIBLE if known else State.UNREACHABLE
        await until(lambda: worker.state is state)
        go_on.set()
        error = await refusal(asking)
        assert (error.code(), server.received) == (grpc.StatusCode.UNAVAILABLE, [])


async def test_what_two_servers_hang_on_is_not_tried_on_a_third(model: Path) -> None:
    async def mute(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(3600)
        yield complete(request, 0)

    servers = [FakeStock(model, mute) for _ in range(3)]
    async with over(model, *servers, admission=Admission(patience=Patience(first=(0.3, 0.3, 0.3)))) as r:
        error = await refusal(r.generate("hi", domain="medical"))
        assert (error.code(), "2 workers died or fell silent" in error.details()) == (grpc.StatusCode.ABORTED, True)
        assert sorted(len(server.received) for server in servers) == [0, 1, 1]
        await until(lambda: sum(len(server.aborted) for server in servers) == 2)


async def test_one_that_begins_anew_is_asked_anew_what_it_is(model: Path) -> None:
    server = FakeStock(model)
    async with over(model, server) as r:
        (worker,) = r.fleet.workers
        await r.generate("hi", domain="medical")
        assert server.asked_for_tokenizer == 1
        server.tokenizer = b"{}"
        await server.restart()
        await until(lambda: worker.state is State.INCOMPATIBLE)
        assert "tokenizer differs" in worker.problem
        error = await refusal(whole(r, make_request("hi", domain="medical")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert len(server.received) == 1
        # It may also come back behind the same connection, as behind a proxy.
        server.tokenizer = None
        server.started += 1
        await until(lambda: worker.state is State.READY)
        assert (await r.generate("hi", domain="medical"))[0] == "abc"


@pytest.mark.parametrize("has_health", [True, False])
async def test_one_that_is_not_ready_gets_nothing(
    model: Path, has_health: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsity_router.fleet.stock.server._WELL_SECONDS", 0.5)
    server = FakeStock(model, has_health=has_health)
    async with over(model, server) as r:
        (worker,) = r.fleet.workers
        server.serving = False
        await until(lambda: worker.state is State.DRAINING)
        server.serving, server.paused = True, True
        await asyncio.sleep(0.5)
        assert worker.state is State.DRAINING
        server.paused, server.requests = False, 8
        await until(lambda: worker.state is State.FULL)
        assert (worker.load.requests, worker.load.kv_used_tokens) == (8, 80)


async def test_one_whose_health_costs_a_token_is_asked_for_it_rarely(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeStock(model, has_health=False)
    async with over(model, server) as r:
        (worker,) = r.fleet.workers
        await until(lambda: server.asked_for_load >= 5)
        assert (server.asked_for_token, worker.state) == (1, State.READY)
        # One that begins anew is asked anew, and so is one that was not well.
        await server.restart()
        await until(lambda: worker.state is State.UNREACHABLE)
        await until(lambda: worker.state is State.READY)
        assert server.asked_for_token == 2
        monkeypatch.setattr("sparsity_router.fleet.stock.server._WELL_SECONDS", 0.0)
        server.serving = False
        await server.restart()
        await until(lambda: server.asked_for_token >= 4)
        server.serving = True
        await until(lambda: worker.state is State.READY)


async def other_prompt(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
    found = chunk(request, tokens_of("x"), 1)
    found.chunk.prompt_tokens += 1
    yield found


async def other_tokens(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
    yield chunk(request, [10_000], 1)


async def nothing_of_it(server: FakeStock, request: Any, context: Any) -> AsyncIterator[Any]:
    return
    yield


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        (other_prompt, grpc.StatusCode.UNAVAILABLE, "it answered a prompt of 3 tokens, and was sent 2"),
        (other_tokens, grpc.StatusCode.UNAVAILABLE, "it sent token 10000, which the model does not have"),
        (nothing_of_it, grpc.StatusCode.UNAVAILABLE, "ended its stream without a completion"),
        (says("", "abort"), grpc.StatusCode.UNAVAILABLE, "the server gave the answer up"),
        (fails(grpc.StatusCode.INVALID_ARGUMENT, "odd"), grpc.StatusCode.INVALID_ARGUMENT, "odd"),
        (
            fails(grpc.StatusCode.UNAVAILABLE, "The request queue is full."),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "every dense worker is full",
        ),
        (
            fails(grpc.StatusCode.FAILED_PRECONDITION, "no token", 0, (("smg-constraint-failed", "engine"),)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sampling.response_format",
        ),
    ],
)
async def test_what_it_gets_wrong_is_told(model: Path, behaviour: Any, code: grpc.StatusCode, words: str) -> None:
    async with over(model, FakeStock(model, behaviour)) as r:
        error = await refusal(whole(r, make_request("hi", domain="medical")))
        assert (error.code(), words in error.details()) == (code, True), error.details()


async def test_what_does_not_fit_into_its_cache_is_refused_by_name(model: Path) -> None:
    server = FakeStock(model, kv_tokens=100)
    async with over(model, server) as r:
        error = await refusal(whole(r, make_request("hi", domain="medical", max_new_tokens=99)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "sampling.max_new_tokens: a KV cache for as many tokens" in error.details()
        server.kv_tokens = 0
        await server.restart()
        await until(lambda: r.fleet.workers[0].state is State.READY and server.asked_for_tokenizer > 1)
        error = await refusal(whole(r, make_request("hi", domain="medical", max_new_tokens=511)))
        assert (
            "new ones are too many, the prompt is too long for so many: this model's maximum context length is 512"
            in error.details()
        )
        # At a token that it does not have, a server ends with its process.
        error = await refusal(whole(r, make_request([1, 257], domain="medical")))
        assert (error.code(), "257 is not below the vocabulary size 257" in error.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            True,
        )
        assert not server.received


async def test_who_was_not_reached_yet_may_have_what_stock_servers_lack(model: Path) -> None:
    late = FakeWorker("late", DENSE, model)
    await late.start()
    place = late.address
    await late.stop()
    server = await FakeStock(model).start()
    tokenizer = ModelTokenizer(model)
    stock = StockModel.of(tokenizer.tokenizer, tokenizer.served, tokenizer.digest, tokenizer.config)
    fleet = Fleet((server.address, place), tokenizer.digest, 1.0, model=stock)
    watching = asyncio.create_task(fleet.watch())
    await until(lambda: any(worker.state is State.READY for worker in fleet.workers))
    decision = decide(Signals(10, 10, domain="medical"), snapshot())
    tried = Tried(set(), needs=Needs(frozenset({Need.TOOLS})))
    assert isinstance(nobody(fleet, decision, tried), UnavailableError)
    fleet.workers = [worker for worker in fleet.workers if worker.target != place]
    assert isinstance(nobody(fleet, decision, tried), InvalidRequestError)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await fleet.close()
    await server.stop()


def test_places_of_stock_servers() -> None:
    first, second = discover(("sglang+grpc://[::1]:30000", "sglang+dns:///servers.example:30000"))
    assert (tuple(first.known), tuple(second.known)) == (("sglang+grpc://[::1]:30000",), ())
    for place in ("sglang+grpc://nowhere", "sglang+http://a:1", "grpc://a:1"):
        with pytest.raises(ConfigurationError, match="--worker: "):
            discover((place,))
