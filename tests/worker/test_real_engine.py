"""The backend inside SGLang's CPU engine, on a tiny model: agreement, reports, reasoning spans, nothing left behind.

Every engine serves several tiers; where a test speaks of none, it is the aggressive one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_kernels.huggingface.adapter import use_sparsity
from sparse_kernels.schedule import SparseAttention
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_worker.profiles.profile import parse_profile
from support.tiny import tiny_tokenizer, tiny_weights
from support.workers.engine import Answer, Worker, storm, worker_request
from support.workers.profiles import moderate_document, profile_document
from transformers import AutoModelForCausalLM

POSITIONS, VOCABULARY = 2048, 256
DENSE, MODERATE, AGGRESSIVE = inference_pb2.TIER_DENSE, inference_pb2.TIER_MODERATE, inference_pb2.TIER_AGGRESSIVE
TIERS = (DENSE, MODERATE, AGGRESSIVE)
# Two tokens that the model often generates.
OPEN_ID, CLOSE_ID = 212, 184
OPEN, CLOSE = (str(tiny_tokenizer().id_to_token(token)) for token in (OPEN_ID, CLOSE_ID))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Triton's kernels multiply over 16 dimensions at least.
    return tiny_weights(tmp_path_factory.mktemp("model"), positions=POSITIONS, head_dim=16)


@pytest.fixture(scope="module")
def workers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """One with the kernels for CPUs, and two ranks with those for GPUs in Triton's interpreter."""
    folder = tmp_path_factory.mktemp("workers")
    chunks = ("--chunked-prefill-tokens", "256", "--measured-share", "0")
    every: dict[str, Any] = {"tiers": "dense,moderate,aggressive", "asked": AGGRESSIVE}
    # In the interpreter each tier's proof takes long.
    two: dict[str, Any] = {"tiers": "aggressive,dense", "asked": AGGRESSIVE}
    documents = [profile_document(), moderate_document()]
    started = {
        "torch": Worker(
            model, folder, "torch", *chunks, "--reasoning-open", OPEN, "--reasoning-close", CLOSE,
            documents=documents, **every,
        ),
        "triton": Worker(model, folder, "triton", *chunks, "--tensor-parallel", "2", interpreted=True, **two),
    }  # fmt: skip
    try:
        yield {name: worker.wait() for name, worker in started.items()}
        # SGLang only logs it when what a plugin hooks into is not there.
        assert not any("Failed to apply hooks" in worker.log() for worker in started.values())
    finally:
        codes = {name: worker.stop() for name, worker in started.items()}
    assert set(codes.values()) == {0}, codes


def prompts(count: int, low: int, high: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randint(low, high))] for _ in range(count)]


def greedy(model: Path, prompt: list[int], new: int, profile: SparseAttention | None = None) -> list[int]:
    """What transformers generates from a whole prompt, densely or by a profile."""
    plain = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sparsity" if profile else "sdpa"
    ).eval()
    if profile:
        use_sparsity(plain, profile)
    ids = torch.tensor([prompt])
    out = plain.generate(
        ids, max_new_tokens=new, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(ids)
    )  # fmt: skip
    return [int(token) for token in out[0, len(prompt) :]]


def test_short_prompts_are_answered_as_dense_transformers_do(model: Path, workers: dict[str, Worker]) -> None:
    for prompt in prompts(50, 1, 247):
        answer = workers["torch"].ask(prompt)
        assert answer.tokens == greedy(model, prompt, 8), f"{len(prompt)} tokens"
        assert answer.completion.sparsity.decode_density == answer.completion.sparsity.prefill_density == 1


def test_chunks_and_prefix_hits_change_no_answer(model: Path, workers: dict[str, Worker]) -> None:
    worker, profile, pruned = workers["torch"], parse_profile(profile_document(), "test"), 0
    for number, prompt in enumerate(prompts(12, 300, 1500, seed=1)):
        first = worker.ask(prompt, salt=f"{number}")
        again = worker.ask(prompt, salt=f"{number}")
        other = worker.ask(prompt, salt=f"{number} apart")
        assert first.tokens == again.tokens == other.tokens == greedy(model, prompt, 8, profile)
        assert first.completion.usage.cached_tokens == other.completion.usage.cached_tokens == 0
        assert again.completion.usage.cached_tokens >= len(prompt) - 64
        pruned += first.completion.sparsity.prefill_density < 0.9
    assert pruned > 6


def test_the_kernels_for_gpus_answer_and_report_as_the_cpus_do(workers: dict[str, Worker]) -> None:
    for number, prompt in enumerate(prompts(2, 300, 600, seed=6)):
        for hit in (False, True):
            salt = f"{number}"
            wanted, found = (workers[name].ask(prompt, 3, salt=salt) for name in ("torch", "triton"))
            assert found.tokens == wanted.tokens
            assert found.completion.usage.cached_tokens == wanted.completion.usage.cached_tokens
            ours, theirs = found.completion.sparsity, wanted.completion.sparsity
            # Its two ranks have a KV head each, whose thresholds differ in the second layer.
            assert ours.kernel_calls == 2 * theirs.kernel_calls
            assert theirs.sparse_kernel_calls <= ours.sparse_kernel_calls <= 2 * theirs.sparse_kernel_calls
            for mine, other in zip(ours.layers, theirs.layers, strict=True):
                assert mine.prefill_density == pytest.approx(other.prefill_density)
                assert mine.decode_density == pytest.approx(other.decode_density)
                # Triton's leaves decode out, which is most of it after a prefix hit.
                assert hit or mine.coverage == pytest.approx(other.coverage, abs=0.02)


def test_the_kernels_for_gpus_serve_short_and_long_in_one_batch(workers: dict[str, Worker]) -> None:
    asked = [*prompts(2, 20, 100, seed=7), *prompts(2, 300, 420, seed=8)]
    alone = [workers["torch"].ask(prompt, 3).tokens for prompt in asked]
    requests = [(worker_request(prompt, 3, tier=AGGRESSIVE), None) for prompt in asked]
    together = asyncio.run(storm(workers["triton"].address, requests, 6))
    again = [workers["triton"].ask(prompt, 3).tokens for prompt in asked]
    assert again == alone
    for prompt, completion in zip(asked, together, strict=True):
        assert completion is not None
        assert (completion.sparsity.prefill_density == 1) == (len(prompt) < 256)


def test_each_tier_is_proved_and_told(workers: dict[str, Worker]) -> None:
    every = [(DENSE, "dense", 0), (MODERATE, "tiny-moderate@2", 300), (AGGRESSIVE, "tiny@1", 256)]
    for name, wanted in (("torch", every), ("triton", every[::2])):
        own = workers[name].stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest())
        assert [(each.tier, each.profile, each.sparse_from) for each in own.tiers] == wanted
        dense, *sparse = own.tiers
        assert (dense.proof.density, dense.proof.sparse_kernel_calls) == (1, 0)
        assert dense.proof.kernel_calls > 0
        densities = [each.proof.density for each in own.tiers]
        assert densities == sorted(set(densities), reverse=True)
        assert all(each.proof.sparse_kernel_calls for each in sparse)
        assert (own.tier, own.profile, own.proof, own.backend) == (DENSE, "dense", dense.proof, "sparsity")


def test_keys_of_a_sparse_tier_answer_no_request_of_a_denser_one(model: Path, workers: dict[str, Worker]) -> None:
    profiles = [None, *(parse_profile(each, "test") for each in (moderate_document(), profile_document()))]
    changed = 0
    for number, prompt in enumerate(prompts(4, 700, 1500, seed=13)):
        texts = [greedy(model, prompt, 8, profile) for profile in profiles]
        # The sparsest first, all by one tenant's salt: what it left in the cache is there for the others to hit.
        for tier, wanted in reversed(list(zip(TIERS, texts, strict=True))):
            first, again = (workers["torch"].ask(prompt, salt=f"tenant {number}", tier=tier) for _ in range(2))
            assert first.tokens == again.tokens == wanted
            assert first.completion.usage.cached_tokens == 0
            assert again.completion.usage.cached_tokens >= len(prompt) - 64
            report = first.completion.sparsity
            assert report.tier == tier
            densities = [
                density for layer in report.layers for density in (layer.prefill_density, layer.decode_density)
            ]
            assert (min(densities) == 1) == (tier == DENSE)
        changed += texts[0] != texts[2]
    assert changed, "the tiers answer alike: nothing would tell if they shared keys"


def test_a_request_that_names_no_tier_gets_the_densest(model: Path, workers: dict[str, Worker]) -> None:
    (prompt,) = prompts(1, 600, 700, seed=14)
    answer = workers["torch"].ask(prompt, tier=inference_pb2.TIER_UNSPECIFIED)
    assert answer.tokens == greedy(model, prompt, 8)
    report = answer.completion.sparsity
    assert (report.tier, report.profile, report.sparse_kernel_calls) == (DENSE, "dense", 0)
    assert report.prefill_density == report.decode_density == report.coverage == 1


@pytest.mark.parametrize(("kind", "count", "high"), [("torch", 24, 900), ("triton", 6, 420)])
def test_tiers_in_one_batch_are_answered_and_told_as_alone(
    workers: dict[str, Worker], kind: str, count: int, high: int
) -> None:
    worker, tiers = workers[kind], TIERS if kind == "torch" else TIERS[::2]
    asked = [(prompt, tiers[number % len(tiers)]) for number, prompt in enumerate(prompts(count, 40, high, seed=15))]
    # Of the sparse ones, some hold a reasoning span dense while others of their batch do not.
    spans = [number % 4 == 3 for number in range(count)]

    def ask(number: int, salt: str) -> Answer:
        prompt, tier = asked[number]
        return worker.ask(prompt, 4, salt=salt, tier=tier, reasoning=spans[number])

    def told(answer: Answer) -> list[float]:
        report = answer.completion.sparsity
        layers = [density for each in report.layers for density in (each.prefill_density, each.decode_density)]
        return [report.tier, report.dense_reasoning_tokens, report.kernel_calls, *layers]

    alone = [ask(number, "alone") for number in range(count)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda number: ask(number, "together"), range(count)))
    for first, second in zip(alone, together, strict=True):
        assert second.tokens == first.tokens
        assert second.completion.usage.cached_tokens == 0
        assert told(second)[3:] == pytest.approx(told(first)[3:])
        assert told(second)[:2] == told(first)[:2]
    pruned = {tier: min(told(answer)[3:]) for (_, tier), answer in zip(asked, together, strict=True)}
    assert pruned[DENSE] == 1


def test_an_answer_that_a_stop_text_ends_has_its_report(workers: dict[str, Worker]) -> None:
    worker, tokenizer = workers["torch"], tiny_tokenizer()
    (prompt,) = prompts(1, 300, 330, seed=12)
    whole = worker.ask(prompt, 64, salt="stop")
    texts = [tokenizer.decode([token]) for token in whole.tokens]
    at, stop = next((at, text) for at, text in enumerate(texts) if at and text.isascii() and text not in texts[:at])
    ended = worker.ask(prompt, 64, salt="stop", stop=[stop])
    count = len(ended.tokens)
    # On a busy machine tokens come several at once.
    assert at < count < 64
    assert ended.tokens == whole.tokens[:count]
    # The worker ends it, not the engine: the account is that of the last token that came, after a prefix hit.
    assert ended.completion.sparsity.kernel_calls == 2 * count
    assert len(ended.completion.sparsity.layers) == 2


def test_a_prompt_is_answered_alike_whatever_its_last_page_its_batch_and_what_was_broken_off(
    workers: dict[str, Worker],
) -> None:
    """Around the ends of pages, tiles and chunks; `sparsity_bench.serving` asks the same of workers on GPUs."""
    worker, draw = workers["torch"], random.Random(10)
    asked = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (257, 320, 321, 512, 513)]
    alone = [worker.ask(prompt, 4, salt="alone") for prompt in asked]

    def told(completion: inference_pb2.Completion | None) -> list[float]:
        assert completion is not None
        return [layer.prefill_density for layer in completion.sparsity.layers]

    for prompt, first in zip(asked, alone, strict=True):
        for number in range(2):
            again = worker.ask(prompt, 4, salt=f"again {number}")
            assert again.tokens == first.tokens
            assert told(again.completion) == told(first.completion)
    requests = [(worker_request(prompt, 4, salt="mixed", tier=AGGRESSIVE), None) for prompt in asked]
    together = asyncio.run(storm(worker.address, requests, 5))
    assert [told(completion) for completion in together] == [pytest.approx(told(each.completion)) for each in alone]
    again = [worker.ask(prompt, 4, salt="mixed").tokens for prompt in asked]
    assert again == [each.tokens for each in alone]
    (cold,) = prompts(1, 1900, 1900, seed=11)
    whole = worker.ask(cold, 4, salt="cold")
    for number, seconds in enumerate((0.02, 0.06)):
        asyncio.run(
            storm(worker.address, [(worker_request(cold, 4, salt=f"left {number}", tier=AGGRESSIVE), seconds)], 1)
        )
        assert worker.ask(cold, 4, salt=f"left {number}").tokens == whole.tokens


def inside(prompt: list[int], generated: list[int]) -> bool:
    """Whether the newest token lies after an opening marker that is not closed."""
    markers = [token for token in prompt + generated if token in (OPEN_ID, CLOSE_ID)]
    return markers[-1:] == [OPEN_ID]


def test_reasoning_spans_decode_densely_and_the_rest_does_not(workers: dict[str, Worker]) -> None:
    worker, counted = workers["torch"], set()
    assert list(worker_markers(worker)) == [OPEN, CLOSE]
    for number, prompt in enumerate(prompts(8, 400, 900, seed=2)):
        prompt += [OPEN_ID] if number % 2 else [OPEN_ID, CLOSE_ID]
        answer = worker.ask(prompt, 48, reasoning=True)
        steps = [inside(prompt, answer.tokens[: count + 1]) for count in range(len(answer.tokens) - 1)]
        report = answer.completion.sparsity
        assert report.dense_reasoning_tokens == sum(steps)
        assert (report.decode_density == 1) == all(steps)
        counted.add(sum(steps))
        # Nobody asked: sparse, whatever the markers say.
        plain = worker.ask(prompt, 8).completion.sparsity
        assert plain.dense_reasoning_tokens == 0
        assert plain.decode_density < 1
    assert len(counted) > 4


def test_a_model_without_markers_decodes_all_of_it_densely(workers: dict[str, Worker]) -> None:
    assert not worker_markers(workers["triton"])
    (prompt,) = prompts(1, 400, 450, seed=3)
    report = workers["triton"].ask(prompt, 4, reasoning=True).completion.sparsity
    assert (report.dense_reasoning_tokens, report.decode_density) == (3, 1)
    assert workers["triton"].ask(prompt, 4).completion.sparsity.decode_density < 1


def worker_markers(worker: Worker) -> list[str]:
    return list(worker.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest()).reasoning_markers)


def test_coverage_is_measured_where_it_is_asked_for(workers: dict[str, Worker]) -> None:
    (prompt,) = prompts(1, 700, 760, seed=9)
    report = workers["torch"].ask(prompt, 40, measured=True).completion.sparsity
    # Three chunks of eight rows, and every 16th token, in both layers.
    steps = [length for length in range(len(prompt) + 1, len(prompt) + 40) if length % 16 == 0]
    assert report.measured_rows == 2 * (3 * 8 + len(steps))
    assert 0.1 < report.measured_coverage < 0.999
    assert report.measured_coverage == pytest.approx(report.coverage, abs=0.15)
    # Triton's kernels measure prefill only.
    other, wanted = (
        workers[name].ask(prompt[:300], 1, measured=True, salt="apart").completion.sparsity
        for name in ("triton", "torch")
    )  # fmt: skip
    assert other.measured_rows == 2 * wanted.measured_rows == 2 * 2 * 2 * 8
    assert other.measured_coverage == pytest.approx(wanted.measured_coverage, abs=1e-4)
    assert not workers["torch"].ask(prompt[:200], 4, measured=True).completion.sparsity.measured_rows


def test_five_hundred_requests_and_a_fifth_of_them_cancelled_leave_nothing_behind(workers: dict[str, Worker]) -> None:
    worker, draw = workers["torch"], random.Random(4)
    before = worker.load()
    asked = [
        (
            worker_request(prompt, draw.randint(1, 24), tier=draw.choice(TIERS)),
            draw.uniform(0, 0.4) if draw.random() < 0.2 else None,
        )
        for prompt in prompts(500, 1, 700, seed=5)
    ]
    ended = asyncio.run(storm(worker.address, asked, 8))
    kept = [completion for (_, cancel), completion in zip(asked, ended, strict=True) if cancel is None]
    assert len(kept) > 350
    assert all(kept)
    for completion in filter(None, ended):
        check_report(completion)
    now = worker.emptied()
    # Some are cancelled before the worker has them.
    assert now.finished_requests - before.finished_requests >= len(kept)
    assert now.aborted_requests > before.aborted_requests
    assert worker.ask([1, 2, 3]).tokens


def check_report(completion: inference_pb2.Completion) -> None:
    report = completion.sparsity
    assert len(report.layers) == 2
    assert 0 < report.prefill_density <= 1
    assert 0 < report.decode_density <= 1
    assert 0 < report.min_layer_coverage <= report.coverage <= 1.0001
    steps = completion.usage.completion_tokens - 1
    assert report.kernel_calls >= 2 * (1 + steps)
    assert report.sparse_kernel_calls <= report.kernel_calls
