"""Token intervals: as close as decisions need them, checked by the worker, and no reason for less attention."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide, hangs_on_length
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Reason, Signals, Tier
from sparsity_router.prompts.classify import Classified, Classifier
from sparsity_router.prompts.corpus import excerpt
from sparsity_router.prompts.lengths import SAMPLED_CHARACTERS, Interval, LengthModel
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import InvalidRequestError
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, MODERATE, rig
from support.stores.snapshots import snapshot
from support.tiny import CONTEXT, tiny_model, tiny_tokenizer
from support.workers.fake_worker import FakeWorker, answer
from tokenizers import models, pre_tokenizers

POLICY = parse_policy({"domain": "low", "risk": "low", "bands": BANDS})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


def subword_tokenizer(folder: Path) -> ModelTokenizer:
    """One token a letter, a run of white space or two digits: its rate depends on the text."""
    tiny_model(folder)
    tokenizer = tiny_tokenizer()
    pairs = ["".join(pair) for pair in itertools.product("abcdefghijklmnopqrstuvwxyzĠ", repeat=2)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(pair[0], pair[1]) for pair in pairs]
    tokenizer.model = models.BPE({symbol: n for n, symbol in enumerate([*alphabet, *pairs])}, merges)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ModelTokenizer(folder)


def test_intervals_hold_the_count(tmp_path: Path) -> None:
    tokenizer = subword_tokenizer(tmp_path)
    lengths = LengthModel(tokenizer)
    for start, size in itertools.product((0, 70_000, 210_000), (500, 4096, SAMPLED_CHARACTERS, 200_000)):
        text = excerpt(size, start)
        count, bytes_ = len(tokenizer.encode(text, special=False)), len(text.encode())
        low, high = lengths.bound(text, bytes_)
        assert 1 <= low <= count <= high < 4 * count
        if size >= SAMPLED_CHARACTERS:
            closer = lengths.sample(text, bytes_)
            assert low <= closer.low <= count <= closer.high <= high
            assert closer.high - closer.low < 0.5 * count


def test_text_beyond_ascii_may_take_a_token_a_byte(tmp_path: Path) -> None:
    tokenizer = subword_tokenizer(tmp_path)
    text = "ж" * 300
    interval = LengthModel(tokenizer).bound(text, 600)
    assert interval.low <= len(tokenizer.encode(text, special=False)) == 600 <= interval.high


async def classify(model: Path, prompt: Any, policy: Any = POLICY, **options: Any) -> Classified:
    classifier = Classifier(ModelTokenizer(model), 10_000)
    return await classifier.classify(make_request(prompt, domain="low"), snapshot([policy]), **options)


async def test_tokens_are_counted_only_where_the_decision_hangs_on_them(model: Path) -> None:
    within = await classify(model, "y" * 20)
    assert within.signals.min_tokens <= 20 <= within.signals.max_tokens < 50
    assert (within.prompt.ids, within.prompt.text, within.prompt.special) == ([], "y" * 20, True)
    astride = await classify(model, "y" * 55)
    assert astride.signals.min_tokens == astride.signals.max_tokens == 55 == len(astride.prompt.ids)
    told = await classify(model, "y" * 20, exact=True)
    assert told.signals.max_tokens == len(told.prompt.ids) == 20
    given = await classify(model, [1] * 20)
    assert given.signals.max_tokens == len(given.prompt.ids) == 20
    near_the_end = await classify(model, "y" * (CONTEXT - 1))
    assert near_the_end.signals.max_tokens == CONTEXT - 1
    with pytest.raises(InvalidRequestError, match=f"has {CONTEXT} tokens"):
        await classify(model, "y" * CONTEXT)


async def test_a_chat_is_rendered_but_not_counted(model: Path) -> None:
    found = await classify(model, inference_pb2.ChatPrompt(messages=[{"role": "user", "content": "hi"}]))
    assert (found.prompt.ids, found.prompt.text, found.prompt.special) == ([], "[user]hi[assistant]", False)


def test_one_tier_over_the_whole_interval_needs_no_count() -> None:
    at = snapshot([POLICY])
    assert not hangs_on_length(Signals(1, 49, domain="low"), at)
    assert hangs_on_length(Signals(1, 50, domain="low"), at)
    assert not hangs_on_length(Signals(50, 50, domain="low"), at)
    assert not hangs_on_length(Signals(1, 500, domain="low", flags=frozenset({"f"})), at)
    assert not hangs_on_length(Signals(1, 500, domain="nobody"), at)


def test_a_rule_that_reads_tokens_wants_the_count_and_is_dense_without() -> None:
    rules = [{"name": "short", "when": "tokens < 30", "tier": "dense"}]
    bands = [{"from_tokens": 0, "tier": "aggressive"}]
    at = snapshot([parse_policy({"domain": "low", "risk": "low", "bands": bands, "rules": rules})])
    wide = Signals(20, 200, domain="low")
    assert hangs_on_length(wide, at)
    decision = decide(wide, at)
    assert (decision.tier, decision.reason) == (Tier.DENSE, Reason.LOW_CONFIDENCE)
    assert "of which there are 20 to 200" in decision.explanation
    assert decide(Signals(200, 200, domain="low"), at).tier is Tier.AGGRESSIVE


async def test_a_wrong_estimate_costs_a_retry_and_no_attention(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LengthModel, "bound", lambda *_: Interval(110, 150))
    workers = [FakeWorker(name, tier, model) for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))]
    async with rig(model, *workers) as r:
        text, completion = await r.generate("y" * 60)
        assert (text, completion.worker_id) == ("abc", "m")
        assert completion.decision.tier == MODERATE
        call = r.stub.Generate(make_request("y" * 60, domain="low"), timeout=10.0)
        assert [1 async for _ in call]
        assert dict(await call.trailing_metadata())["sparsity-tier"] == "moderate", (
            "the trailers tell the last decision"
        )
        sparse = r.fleet.of(Tier.AGGRESSIVE)[0]
        assert sparse.breaker_word == "closed"
        assert (await r.generate("y" * 120))[1].worker_id == "a"
    assert not workers[0].received


async def test_a_worker_that_always_disagrees_is_no_endless_loop(model: Path) -> None:
    async def disagree(worker: FakeWorker, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "as told")
        async for response in answer(worker, request, context):
            yield response

    worker = FakeWorker("d", DENSE, model, behaviour=disagree)
    async with rig(model, worker) as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.generate("hi")
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert [bool(request.prompt.ids) for request in worker.received] == [False, True]


async def test_the_worker_gets_text_where_nobody_counted(model: Path) -> None:
    worker = FakeWorker("d", DENSE, model)
    async with rig(model, worker) as r:
        await r.generate("hi")
        await r.generate([1, 2])
    text, ids = worker.received
    assert (text.text.text, text.text.add_special_tokens, list(text.prompt.ids)) == ("hi", True, [])
    assert (ids.HasField("text"), list(ids.prompt.ids)) == (False, [1, 2])
    assert text.tier == inference_pb2.TIER_DENSE


async def test_a_prompt_far_too_long_is_refused_without_counting_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    encode = ModelTokenizer.encode

    def noted(self: ModelTokenizer, text: str, *, special: bool) -> list[int]:
        counted.append(len(text))
        return encode(self, text, special=special)

    monkeypatch.setattr(ModelTokenizer, "encode", noted)
    classifier = Classifier(ModelTokenizer(model), 10**7)
    request, at = make_request("some words " * 300_000, domain="low"), snapshot([POLICY])
    for exact in (False, True):
        with pytest.raises(
            InvalidRequestError,
            match=rf"has about \d+ tokens, the prompt is too long: this model's maximum context length is {CONTEXT}",
        ):
            await classifier.classify(request, at, exact=exact)
    assert max(counted) < 10_000
