"""A transformers model attended by the kernels, beside the same model attended in torch on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from sparse_kernels import DecodeConfig, PrefillConfig
from sparse_kernels.huggingface.adapter import NAME, Attended, ByProfile, use_attention, use_sparsity
from sparse_kernels.huggingface.by_kernels import ByKernels
from sparse_kernels.huggingface.paged_cache import PagedCache
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from support.kernels.devices import DEVICE, INTERPRETED
from support.kernels.paging import rms_ratio
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH, LAYERS = 400, 2
PROFILE = SparseAttention(
    PrefillConfig(
        sparse_from=0, score="sub_means", rule="top_p", threshold=0.6, query_tile=128, query_stride=8, sink=64,
        window=64, dense_last_tiles=0,
    ),
    DecodeConfig(sparse_from=0, budget=256, sink=64, recent=64, score="sub_pages"),
    frozenset({0}),
    {1: LayerSchedule(thresholds=(0.3, 0.9), budget=320)},
)  # fmt: skip
# Tensor cores of a GPU multiply in 16 bits.
APART = 1e-4 if INTERPRETED else 3e-2


@pytest.fixture(scope="module")
def plain() -> LlamaForCausalLM:
    """The shape of a small model: heads of 64, three query heads to a KV head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, intermediate_size=64, max_position_embeddings=1024, num_hidden_layers=LAYERS, hidden_size=384,
        num_attention_heads=6, num_key_value_heads=2, head_dim=64, initializer_range=0.05, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = NAME
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def placed(plain: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same where the kernels run, in the dtype that they multiply there."""
    return copy.deepcopy(plain).to(DEVICE, torch.float32 if INTERPRETED else torch.bfloat16)


def tokens(count: int) -> torch.Tensor:
    return torch.randint(1, 64, (1, count), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def read(
    model: LlamaForCausalLM, attention: ByProfile | ByKernels, parts: list[int], paged: bool = True
) -> tuple[torch.Tensor, Attended]:
    """Hidden states of a text that is read in parts, and what was attended."""
    cache = PagedCache(LAYERS, LENGTH) if paged else None
    attended = use_attention(model, attention, 64, 16, cache)
    found = []
    for part in tokens(sum(parts)).split(parts, 1):
        found.append(model.model(part.to(model.device), past_key_values=cache, use_cache=paged).last_hidden_state[0])
    return torch.cat(found).cpu(), attended


# A prompt; a prompt and a question; and tokens, some of which are the first of their page.
PARTS = [[LENGTH], [300, 45], [383, 1, 1, 12, 1]]


@pytest.mark.parametrize("parts", PARTS)
def test_the_kernels_attend_what_the_cpu_does(
    plain: LlamaForCausalLM, placed: LlamaForCausalLM, parts: list[int]
) -> None:
    wanted, own = read(plain, ByProfile(PROFILE), parts)
    found, other = read(placed, ByKernels(PROFILE), parts)
    assert rms_ratio(found, wanted) < APART
    assert other.density() == pytest.approx(own.density(), abs=0.0 if INTERPRETED else 0.02)
    assert own.density() < 1
    for mine, theirs in ((own.prefill, other.prefill), (own.decode, other.decode)):
        assert mine.keys() == theirs.keys()
        for layer in mine:
            assert [one.causal for one in mine[layer]] == [one.causal for one in theirs[layer]]
            if mine is own.decode:
                assert [one.attended for one in mine[layer]] == [one.attended for one in theirs[layer]]
            else:
                shares = [one.coverage for one in mine[layer]]
                assert shares == pytest.approx([one.coverage for one in theirs[layer]], abs=APART)


def test_dense_is_attended_by_the_kernels_too(plain: LlamaForCausalLM, placed: LlamaForCausalLM) -> None:
    parts = [200, 1, 45]
    dense = replace(PROFILE, dense_layers=frozenset(range(LAYERS)))
    wanted, _ = read(plain, ByProfile(dense), parts)
    found, attended = read(placed, ByKernels(dense), parts)
    assert rms_ratio(found, wanted) < APART
    assert attended.density() == 1.0


def test_keys_of_another_cache_are_laid_out_where_they_lie(plain: LlamaForCausalLM, placed: LlamaForCausalLM) -> None:
    wanted, _ = read(plain, ByProfile(PROFILE), [LENGTH], paged=False)
    found, _ = read(placed, ByKernels(PROFILE), [LENGTH], paged=False)
    assert rms_ratio(found, wanted) < APART


def test_a_score_without_a_kernel_is_refused_by_name(placed: LlamaForCausalLM) -> None:
    profile = replace(PROFILE, prefill=replace(PROFILE.prefill, score="antidiagonal"))
    with pytest.raises(ValueError, match="score: must be one of sampled_rows, sub_means"):
        read(placed, ByKernels(profile), [LENGTH])


def test_the_device_of_a_model_decides_what_attends_it(placed: LlamaForCausalLM) -> None:
    use_sparsity(placed, PROFILE)
    chosen = placed.model.layers[0].self_attn.sparse_attention.attention
    assert isinstance(chosen, ByProfile if INTERPRETED else ByKernels)
