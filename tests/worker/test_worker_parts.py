from __future__ import annotations

import asyncio
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_kernels import AttentionStats, PageSummaries
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import (
    ConfigurationError,
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    TokenCountError,
)
from sparsity_worker.calls.load import Load
from sparsity_worker.calls.requests import check_size, engine_request, marker_ids, read_prompt
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import prepare_environment
from sparsity_worker.engine.report import sparsity_report
from sparsity_worker.keys import CONFIG_KEY, REASONING_KEY
from sparsity_worker.plugin import memory
from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.accounts.reasoning import Reasoning
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL, shares_of
from sparsity_worker.plugin.memory import charge, summaries_of
from sparsity_worker.plugin.ranks import Ranks
from sparsity_worker.profiles.profile import load_profile
from sparsity_worker.profiles.profile_document import read_document, schema_of, shipped_profiles
from sparsity_worker.profiles.tier_profile import SCHEMAS
from support.tiny import tiny_model, tiny_tokenizer

FACTS = ModelFacts("tiny", 512, 257)
# What counts of a pass over a prompt, and of a step: all of it.
READ, STEP = shares_of(1, 1, 0, 1), shares_of(1, 1, 0, 0)


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_load_and_survive_the_model_config(name: str) -> None:
    document = read_document(name)
    parse = SCHEMAS[str(schema_of(document))]
    profile = parse(document, name)
    assert profile.label.partition("@")[0] == name
    assert name.endswith(profile.tier)
    assert parse(profile.to_document(), "again") == profile
    # SGLang hands the model config to its processes as JSON, which has no numbers as keys.
    assert parse(json.loads(json.dumps(profile.to_document())), "again") == profile


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tier": "dense"}, "tier: must be one of moderate, aggressive"),
        ({"colour": 1}, "colour: is not a field"),
        ({"version": "x"}, "version: must be a whole number"),
        ({"sub_block": 7}, "sub_block: 7 must divide"),
        ({"dense_layers": [-1]}, "dense_layers: must be a list"),
        ({"prefill": {"treshold": 1}}, "prefill.treshold: is not a field"),
        ({"prefill": {"threshold": "x"}}, "prefill.threshold: must be of type float"),
        ({"prefill": {"threshold": 2.0}}, "prefill.threshold: must lie in"),
        ({"prefill": {"sink": True}}, "prefill.sink: must be of type int"),
        ({"decode": {"budget": 1}}, "decode.budget: must be at least sink"),
        ({"schema": "v0"}, "schema: must be"),
        ({"layers": [1]}, "layers: must be a mapping"),
        ({"layers": {"one": {}}}, "layers.one: must be a layer number with thresholds and budget"),
        ({"layers": {3: {"threshold": [1]}}}, "layers.3: must be a layer number"),
        ({"layers": {3: {"thresholds": 0.5}}}, "layers.3.thresholds: must be a list of numbers"),
        ({"layers": {3: {"thresholds": [2.0]}}}, "layers.3.thresholds: must lie in"),
        ({"layers": {3: {"budget": "x"}}}, "layers.3.budget: must be a whole number"),
        ({"layers": {3: {"budget": 1}}}, "layers.3.budget: must be at least sink"),
    ],
)
def test_profile_mistakes_name_the_field(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    document = load_profile("smollm2-135m-moderate").to_document() | change
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigurationError, match=words):
        load_profile(str(path))


def test_a_missing_profile_lists_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="smollm2-135m-aggressive"):
        load_profile("nope")
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_profile("nope.yaml")


def test_worker_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--model: .* has no config\.json"):
        WorkerConfig("w", ("dense",), tmp_path)
    model = tiny_model(tmp_path)
    good = WorkerConfig("w", ("dense",), model)
    for change, option in (
        ({"tiers": ("sparse",)}, "--tiers"),
        ({"tiers": ("moderate",)}, "--profile"),
        ({"dtype": "int4"}, "--dtype"),
        ({"device": "tpu"}, "--device"),
        ({"max_requests": 0}, "--max-requests"),
        ({"tensor_parallel": 0}, "--tensor-parallel"),
    ):
        with pytest.raises(ConfigurationError, match=option):
            replace(good, **change)
    assert ModelFacts.read(model) == replace(FACTS, name=model.name, heads=4)
    (model / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="max_position_embeddings"):
        ModelFacts.read(model)


@pytest.mark.parametrize(("own", "kept"), [(None, "state/kernels"), ("/elsewhere", "/elsewhere")])
def test_compiled_kernels_are_kept_in_a_folder_that_is_told(
    own: str | None, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "environ", {} if own is None else {"TRITON_CACHE_DIR": own})
    with caplog.at_level("INFO", "sparsity.worker"):
        prepare_environment("cpu", 1, kept=tmp_path / "state")
        assert os.environ.get("TRITON_CACHE_DIR") == own
        prepare_environment("cuda", None, kept=tmp_path / "state")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / kept)
    assert caplog.messages == [f"compiled kernels are kept in {tmp_path / kept}"]


def request(ids: list[int], rid: str = "r", **sampling: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    return worker_pb2.WorkerServiceGenerateRequest(
        request_id=rid,
        prompt=inference_pb2.TokenIds(ids=ids),
        sampling=inference_pb2.SamplingParams(**sampling),
    )


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request([1], rid=""), "request_id"),
        (request([]), "prompt"),
        (request([257]), "prompt.ids"),
        (request([1], temperature=-0.1), "sampling.temperature"),
        (request([1], temperature=float("nan")), "sampling.temperature"),
        (request([1], top_p=0.0), "sampling.top_p"),
        (request([1], top_p=1.5), "sampling.top_p"),
        (request([1], top_k=0), "sampling.top_k"),
        (request([1], top_k=2**31), "sampling.top_k"),
        (request([1], top_k=2**32 - 1), "sampling.top_k"),
        (request([1], max_new_tokens=0), "sampling.max_new_tokens"),
        (request([1], max_new_tokens=512), "sampling.max_new_tokens"),
        (request([1], max_new_tokens=2**32 - 1), "sampling.max_new_tokens"),
        (request([1], frequency_penalty=3.0), "sampling.frequency_penalty"),
        (request([1], presence_penalty=float("nan")), "sampling.presence_penalty"),
        (request([1], stop=[""]), "sampling.stop"),
        (request([1], stop=["x"] * 17), "sampling.stop"),
        (request([1], stop=["x" * 1025]), "sampling.stop"),
    ],
)
def test_bad_requests_name_the_field(bad: worker_pb2.WorkerServiceGenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        engine_request(bad, list(bad.prompt.ids), FACTS)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read() -> None:
    check_size(request([1] * 511), FACTS)
    long = worker_pb2.WorkerServiceGenerateRequest(text=worker_pb2.TextPrompt(text=" " * (256 * 512 + 1)))
    for bad, field in ((request([1] * 512), "prompt.ids"), (long, "text.text")):
        with pytest.raises(InvalidRequestError, match=field):
            check_size(bad, FACTS)


def test_reasoning_reaches_the_engine_with_the_models_markers() -> None:
    tokenizer = tiny_tokenizer()
    assert marker_ids(tokenizer, ("<think>", "</think>")) == marker_ids(tokenizer, ("<", "</think>")) == ()
    markers = marker_ids(tokenizer, ("<", ">"))
    assert [tokenizer.id_to_token(marker) for marker in markers] == ["<", ">"]
    asked = request([1, 2])
    assert "custom_params" not in engine_request(asked, [1, 2], FACTS, markers, tier="moderate").sampling
    asked.dense_reasoning = True
    # All of it is decoded densely anyway.
    assert "custom_params" not in engine_request(asked, [1, 2], FACTS, markers, tier="dense").sampling
    for known in (markers, ()):
        sampling = engine_request(asked, [1, 2], FACTS, known, tier="moderate").sampling
        assert sampling["custom_params"] == {REASONING_KEY: list(known)}


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8))
def test_a_span_goes_from_the_last_opening_marker_to_a_closing_one(prompt: list[int], pieces: list[list[int]]) -> None:
    reasoning, everything, text = Reasoning((0, 1), prompt), Reasoning((), prompt), list[int]()
    for piece in pieces:
        text += piece
        markers = [token for token in prompt + text if token < 2]
        assert reasoning.goes_on(text) == (markers[-1:] == [0])
        assert everything.goes_on(text)


def test_one_marker_is_none() -> None:
    with pytest.raises(ValueError, match="markers: are 1"):
        Reasoning((5,), [])


def test_a_text_is_tokenized_within_what_the_router_decided_for() -> None:
    tokenizer = tiny_tokenizer()
    assert read_prompt(request([1, 2]), tokenizer) == [1, 2]
    text = worker_pb2.TextPrompt(text="abc", min_tokens=3, max_tokens=3)
    made = worker_pb2.WorkerServiceGenerateRequest(text=text)
    assert read_prompt(made, tokenizer) == tokenizer.encode("abc").ids
    for low, high in ((4, 9), (0, 2), (0, 0)):
        made.text.min_tokens, made.text.max_tokens = low, high
        with pytest.raises(TokenCountError, match=rf"3 tokens are not in \[{low}, {high}\]"):
            read_prompt(made, tokenizer)
    made.prompt.ids.append(1)
    with pytest.raises(InvalidRequestError, match="stands beside `prompt`"):
        read_prompt(made, tokenizer)


def test_good_requests_keep_what_was_set() -> None:
    made = engine_request(request([], max_new_tokens=5, temperature=0.5, top_k=3), [1, 2], FACTS)
    assert made.prompt == [1, 2]
    assert made.sampling == {"max_new_tokens": 5, "temperature": 0.5, "top_k": 3}
    # Every token there is, a mass that a GPU would round to 0, and more bits than the sampler's seed has.
    edges = engine_request(request([1], top_k=2**31 - 1, top_p=1e-45, seed=2**64 - 1), [1], FACTS).sampling
    assert "top_k" not in edges
    assert (edges["top_p"], edges["sampling_seed"]) == (1e-6, 2**63 - 1)
    assert engine_request(request([]), [1], FACTS).sampling == {"max_new_tokens": 128, "temperature": 0.0}


def test_the_ledger_adds_up_per_request_and_layer() -> None:
    ledger = Ledger(layers=2, capacity=2)
    ledger.add("a", 0, READ, AttentionStats(50, 100, 0.8, 10))
    ledger.add("a", 0, READ, AttentionStats(50, 100, 0.6, 10))
    ledger.add("a", 1, READ, AttentionStats(200, 200, 1.0, 20))
    ledger.add("a", 1, STEP, AttentionStats(1, 4, 0.5, 20))
    account = Account.unpack(ledger.pack("a"))
    np.testing.assert_allclose(account.density(PREFILL), [0.5, 1.0])
    np.testing.assert_allclose(account.density(DECODE), [1.0, 0.25])
    np.testing.assert_allclose(account.coverage(), [0.7, 0.75])
    assert (account.sparse_calls, account.calls) == (3, 4)
    ledger.add("b", 0, READ, AttentionStats(1, 1, 1.0, 1))
    ledger.add("c", 0, READ, AttentionStats(1, 1, 1.0, 1))
    assert len(ledger) == 2
    assert ledger.pack("a") == b""
    report = sparsity_report(inference_pb2.TIER_MODERATE, "p@1", "sparsity", ledger.pack("b"))
    assert len(report.layers) == 2
    for broken in (b"x", b"\x01" * 50):
        with pytest.raises(ValueError, match="account"):
            Account.unpack(broken)


def test_ranks_add_up_what_each_attended() -> None:
    ledgers = [Ledger(layers=2, capacity=4) for _ in range(2)]
    for rank, ledger in enumerate(ledgers):
        ledger.add("a", 1, READ, AttentionStats(50 * rank, 50, 0.5 * rank, 10, 0.25, 4))
        ledger.add_layers("b", STEP, [0, 1], np.array([[1.0, 4.0, 0.0, 4.0], [4.0, 4.0, 4.0, 4.0]]))
    handed = []

    def hand_over(mine: NDArray[np.float64]) -> NDArray[np.float64]:
        handed.append(mine.copy())
        return mine

    ledgers[1].settle(["a", "b"], hand_over)
    ledgers[0].settle(["a", "b"], lambda mine: mine + handed[0])
    ledgers[0].settle([], lambda mine: mine)
    account = Account.unpack(ledgers[0].pack("a"))
    assert account.density(PREFILL).tolist() == [1.0, 0.5]
    assert account.coverage().tolist() == [1.0, 0.25]
    assert (account.sparse_calls, account.calls, account.measured, account.measured_rows) == (1, 2, 0.25, 8)
    assert Account.unpack(ledgers[0].pack("b")).density(DECODE).tolist() == [0.25, 1.0]
    # What comes later is the rank's own until they add up again.
    ledgers[0].add("a", 1, READ, AttentionStats(50, 50, 1.0, 10))
    assert Account.unpack(ledgers[0].pack("a")).density(PREFILL)[1] == pytest.approx(100 / 150)


@pytest.mark.parametrize(
    ("heads", "size", "found"),
    [(8, 1, [range(8)]), (8, 2, [range(4), range(4, 8)]), (2, 4, [range(1), range(1), range(1, 2), range(1, 2)])],
)
def test_each_rank_has_its_heads_and_their_thresholds(heads: int, size: int, found: list[range]) -> None:
    assert [Ranks(heads, rank, size).own_heads for rank in range(size)] == found
    thresholds = tuple(number / 10 for number in range(heads))
    whole = SparseAttention(layers={3: LayerSchedule(thresholds, 512), 4: LayerSchedule()})
    for own in found:
        mine = whole.for_heads(own)
        assert mine.layers == {3: LayerSchedule(thresholds[own.start : own.stop], 512), 4: LayerSchedule()}
        mine.check(5, len(own))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_summaries_are_charged_to_the_memory_of_the_kv_cache(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "of", lambda kv_heads: Ranks(kv_heads, 1, 2))
    document = load_profile("generic-aggressive").to_document()
    config = SimpleNamespace(hf_config=SimpleNamespace(**{CONFIG_KEY: {"aggressive": document}}), head_dim=64)
    config.get_total_num_kv_heads = lambda: 8
    kvc = SimpleNamespace(model_config=config, device=device, kv_cache_dtype=torch.bfloat16)
    # Ten pages of 64 tokens, for each of three layers, of this rank's four heads.
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    held = 3 * PageSummaries(10, 64, 4, 64, 16, dtype=dtype).nbytes
    assert charge(5000, None, kvc, 3) - 5000 == math.ceil(held / 640)
    # Of a cache of 16 bits.
    assert held / 640 / (3 * 2 * 4 * 64 * 2) == pytest.approx(0.047 if device == "cuda" else 0.094, abs=0.001)
    config.hf_config = SimpleNamespace()
    assert charge(5000, None, kvc, 3) == 5000


def test_summaries_without_memory_name_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = torch.zeros(4, 16, 2, 8)
    assert summaries_of(cache, 4, range(3, 5)).keys() == {3, 4}

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(memory, "PageSummaries", full)
    with pytest.raises(
        ConfigurationError, match=r"--mem-fraction: no memory .* of 64 tokens; lower it, or --max-total"
    ):
        summaries_of(cache, 4, range(2))


def test_heads_that_ranks_cannot_share_are_refused() -> None:
    nine = replace(FACTS, heads=9)
    nine.check_ranks(3)
    with pytest.raises(ConfigurationError, match="--tensor-parallel: tiny has 9 heads, which 2 cannot share"):
        nine.check_ranks(2)


def test_a_dense_report_says_everything_was_attended() -> None:
    report = sparsity_report(inference_pb2.TIER_DENSE, "dense", "torch_native", b"")
    assert (report.prefill_density, report.decode_density, report.coverage, len(report.layers)) == (1, 1, 1, 0)


async def test_load_admits_counts_and_drains() -> None:
    load = Load(limit=2)
    with load.admit("a", 10):
        with pytest.raises(InvalidRequestError, match="in flight already"), load.admit("a", 1):
            pass
        with load.admit("b", 5):
            assert load.outstanding_tokens == 15
            with pytest.raises(OverloadedError, match="holds its 2 requests"), load.admit("c", 1):
                pass
        assert not await load.idle(0.05)
    with pytest.raises(ZeroDivisionError), load.admit("d", 1):
        raise ZeroDivisionError
    assert (load.finished, load.aborted) == (2, 1)
    waiting = asyncio.create_task(load.idle(None))
    assert await asyncio.wait_for(waiting, 1.0)
    load.drain()
    with pytest.raises(DrainingError), load.admit("e", 1):
        pass
