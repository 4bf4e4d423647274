"""Tiers of a model with DeepSeek's indexer. SGLang runs it on GPUs only: here are config, refusals and accounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.keys import CONFIG_KEY
from sparsity_worker.plugin.accounts.ledger import Account
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL
from sparsity_worker.plugin.attention import Prompt
from sparsity_worker.plugin.indexer import IndexerMeter, picked
from sparsity_worker.profiles.indexer_profile import IndexerProfile, parse_indexer_profile
from sparsity_worker.profiles.tier_profile import load_tier_profiles, model_overrides
from support.tiny import tiny_model

DOCUMENT: dict[str, Any] = {
    "schema": "sparsity.indexer-profile/v1", "name": "tiny-dsa", "version": 3, "tier": "aggressive", "index_topk": 128,
}  # fmt: skip


_PICKS = """
import json, os, sys
from sglang.srt.configs.model_config import ModelConfig, get_dsa_index_topk, is_deepseek_dsa
configs = [ModelConfig(sys.argv[1], model_override_args=each).hf_config for each in sys.argv[2:]]
print(json.dumps([get_dsa_index_topk(each) if is_deepseek_dsa(each) else 0 for each in configs]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says what DeepSeek-V3.2's says, for two small layers."""
    from transformers import DeepseekV32Config

    folder = tiny_model(tmp_path_factory.mktemp("dsa") / "tiny-v32")
    config = DeepseekV32Config(
        vocab_size=257, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, v_head_dim=16, qk_nope_head_dim=16,
        max_position_embeddings=2048, index_topk=256,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["DeepseekV32ForCausalLM"]}))
    return folder


def worker(model: Path, folder: Path, tier: str = "aggressive", device: str = "cuda", **change: Any) -> WorkerConfig:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT | change))
    profiles = () if tier == "dense" else (str(path),)
    return WorkerConfig("w", (tier,), model, profiles=profiles, device=device)


def test_the_engine_is_told_how_many_tokens_a_tier_picks(model: Path, tmp_path: Path) -> None:
    facts = ModelFacts.read(model)
    assert facts == ModelFacts("tiny-v32", 2048, 257, index_topk=256, latent=True, heads=4, ends=facts.ends)
    sparse = load_tier_profiles(worker(model, tmp_path), facts)["aggressive"]
    assert (sparse.label, sparse.backend, sparse.page_size, sparse.sparse_from) == ("tiny-dsa@3", "dsa", 64, 129)
    assert not load_tier_profiles(worker(model, tmp_path, tier="dense"), facts)
    # In a process of its own: what SGLang imports warns, and one part of it crashes as the interpreter ends.
    command = [sys.executable, "-c", _PICKS, str(model)]
    command += [json.dumps(each) for each in ({}, model_overrides([sparse], facts), model_overrides([], facts))]
    found = subprocess.run(command, env=os.environ | {"SGLANG_USE_CPU_ENGINE": "1"}, capture_output=True, text=True)
    # The dense tier of such a model attends everything, although the model's own config says otherwise.
    assert found.stdout.splitlines()[-1:] == ["[256, 128, 0]"], found.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index_topk": 192}, "index_topk: must be a multiple of 128 up to 2048, not 192"),
        ({"index_topk": 4096}, "index_topk: must be a multiple of 128 up to 2048"),
        ({"index_topk": True}, "index_topk: must be a whole number of at least 1"),
        ({"index_topk": 512}, "index_topk: 512, where tiny-v32 was trained with 256"),
        ({"block_size": 64}, "block_size: is not a field"),
        ({"tier": "moderate"}, "tiny-dsa@3 is for the aggressive tier, which --tiers moderate does not name"),
        ({"schema": "sparsity.profile/v0"}, "schema: must be one of sparsity.profile/v1, sparsity.indexer-profile/v1"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_engine_starts(
    model: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_tier_profiles(worker(model, tmp_path, **change), ModelFacts.read(model))
    assert words in str(error.value)


def test_tiers_models_and_devices_that_do_not_go_together_are_refused(model: Path, tmp_path: Path) -> None:
    facts = ModelFacts.read(model)
    plain = ModelFacts("llama", 2048, 257)
    cases = [
        (worker(model, tmp_path, device="cpu"), facts, "--device: must be cuda for tiny-dsa@3"),
        (worker(model, tmp_path, tier="dense", device="cpu"), facts, "latent KV cache (MLA) of tiny-v32; use cuda"),
        (worker(model, tmp_path), plain, "llama has no indexer"),
        (
            replace(worker(model, tmp_path), profiles=("generic-aggressive",)),
            facts,
            "such as dsa-aggressive",
        ),
    ]
    for config, about, words in cases:
        with pytest.raises(ConfigurationError) as error:
            load_tier_profiles(config, about)
        assert words in str(error.value)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 400))
def test_pairs_are_those_of_every_query_counted_by_itself(start: int, new: int, index_topk: int) -> None:
    contexts = range(start + 1, start + new + 1)
    kept = [min(context, index_topk) for context in contexts]
    whole = sum(context <= index_topk for context in contexts)
    assert picked(start + new, new, index_topk) == (sum(kept), sum(contexts), whole, new)


class DeepseekSparseAttnBackend:
    """As SGLang's, where the meter touches it."""

    def __init__(self, index_topk: int = 128) -> None:
        self.dsa_index_topk = index_topk

    def forward_extend(self, q: Any, k: Any, v: Any, layer: Any, batch: Any, topk_indices: Any = None) -> Any:
        return layer.layer_id, topk_indices


def runner(backend: Any, document: Any = DOCUMENT) -> Any:
    config = SimpleNamespace(hf_config=SimpleNamespace(**{CONFIG_KEY: {"aggressive": document}}), num_hidden_layers=2)
    options = SimpleNamespace(disable_cuda_graph=False)
    pool = SimpleNamespace(size=2)
    return SimpleNamespace(model_config=config, attn_backend=backend, server_args=options, req_to_token_pool=pool)


def batch(decode: bool, rids: list[str], prefix: list[int], new: list[int]) -> Any:
    mode = SimpleNamespace(is_decode_or_idle=lambda: decode)
    return SimpleNamespace(forward_mode=mode, rids=rids, extend_prefix_lens_cpu=prefix, extend_seq_lens_cpu=new)


def test_an_account_tells_what_the_backend_was_handed() -> None:
    own = runner(DeepseekSparseAttnBackend())
    meter = IndexerMeter.of(own)
    assert meter is not None
    assert IndexerMeter.of(own) is meter

    def prefill(prefix: int, new: int, lists: tuple[Any, Any]) -> None:
        for number, found in enumerate(lists):
            layer = SimpleNamespace(layer_id=number)
            # A layer without a list takes SGLang's dense path, which is called without the argument.
            more = {} if found is None else {"topk_indices": found}
            assert own.attn_backend.forward_extend(0, 0, 0, layer, 0, **more) == (number, found)
        meter.book(batch(False, ["r"], [prefix], [new]))

    prefill(0, 256, ("list", None))
    prefill(256, 44, ("list", "list"))
    for _ in range(3):
        meter.book(batch(True, ["r"], [], []))
    account = Account.unpack(meter.ledger.pack("r"))
    first, second = picked(256, 256, 128), picked(300, 44, 128)
    causal = first.causal + second.causal
    assert account.density(PREFILL).tolist() == [(first.attended + second.attended) / causal,
                                                 (first.causal + second.attended) / causal]  # fmt: skip
    steps = [128 / context for context in (301, 302, 303)]
    assert account.density(DECODE) == pytest.approx([3 * 128 / (301 + 302 + 303)] * 2)
    assert min(steps) < account.density(DECODE)[0] < max(steps)
    # Known to be kept: the queries that attend all they have; of the others nothing is known.
    assert account.coverage() == pytest.approx([128 / 303, 256 / 303])
    assert (account.sparse_calls, account.calls) == (3 + 6, 4 + 6)


def test_tokens_of_a_request_that_was_taken_back_count_once() -> None:
    def told(*passes: tuple[bool, list[int], list[int]]) -> Account:
        own = runner(DeepseekSparseAttnBackend())
        meter = IndexerMeter.of(own)
        assert meter is not None
        meter.prompts = {"r": Prompt(300)}
        for decode, prefix, new in passes:
            if not decode:
                for number in range(2):
                    own.attn_backend.forward_extend(0, 0, 0, SimpleNamespace(layer_id=number), 0, topk_indices="list")
            meter.book(batch(decode, ["r"], prefix, new))
        return Account.unpack(meter.ledger.pack("r"))

    read, step = (False, [0], [300]), (True, [], [])
    alone = told(read, *[step] * 4)
    # The third step ran ahead, and is taken again after what is read anew.
    again = told(read, *[step] * 3, (False, [256], [46]), *[step] * 2)
    assert again.table.tolist() == alone.table.tolist()


@pytest.mark.parametrize(
    ("backend", "document"),
    [(DeepseekSparseAttnBackend(256), DOCUMENT), (SimpleNamespace(), DOCUMENT), (DeepseekSparseAttnBackend(), None)],
)
def test_a_backend_that_is_not_as_told_gets_no_account(backend: Any, document: Any) -> None:
    # So the start-up probe brings none, and the worker refuses to start.
    assert IndexerMeter.of(runner(backend, document)) is None


def test_lengths_of_requests_that_are_gone_are_forgotten() -> None:
    meter = IndexerMeter(DeepseekSparseAttnBackend(), 1, 128, 4, cuda_graphs=True)
    for number in range(10):
        meter.book(batch(False, [f"r{number}"], [0], [8]))
    assert len(meter._lengths) == len(meter.ledger) == 4


def test_a_document_is_what_was_read() -> None:
    profile = parse_indexer_profile(DOCUMENT, "test")
    assert isinstance(profile, IndexerProfile)
    assert profile.to_document() == DOCUMENT
    assert not profile.densifies
