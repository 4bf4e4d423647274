"""attn_implementation="sparsity" on a tiny random model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_kernels import DecodeConfig, PrefillConfig
from sparse_kernels.huggingface.adapter import NAME, SparseAttention, attend, use_sparsity
from support.kernels.paging import rms_ratio
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def model(implementation: str = NAME, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, intermediate_size=64, max_position_embeddings=512, **(SHAPE | changes), pad_token_id=0
    )
    config._attn_implementation = implementation
    return LlamaForCausalLM(config).eval()


def profile(threshold: float = 0.5, sparse_from: int = 0, budget: int = 64, layers: tuple[int, ...] = ()) -> Any:
    prefill = PrefillConfig(
        sparse_from=sparse_from, threshold=threshold, query_tile=32, sink=16, window=16, mean_correction=False
    )
    decode = DecodeConfig(sparse_from=sparse_from, budget=budget, sink=16, recent=16)
    return SparseAttention(prefill, decode, frozenset(layers), block_size=16, sub_block=4)


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 64, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(of: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = of(ids, attention_mask=mask).logits
    return found


@pytest.mark.parametrize("how", [profile(0.0), profile(sparse_from=999), profile(layers=(0, 1, 2))])
def test_without_pruning_it_equals_sdpa(how: Any) -> None:
    sparse, dense = model(), model("sdpa")
    attended = use_sparsity(sparse, how)
    ids = tokens(200)
    assert rms_ratio(logits(sparse, ids), logits(dense, ids)) < 1e-5
    assert attended.density() == 1.0


def test_pruning_is_counted_by_layer_and_dense_layers_stay_dense() -> None:
    sparse, dense = model(), model("sdpa")
    attended = use_sparsity(sparse, profile(1.0, layers=(0,)))
    ids = tokens(200)
    assert rms_ratio(logits(sparse, ids), logits(dense, ids)) > 1e-4
    assert attended.density(frozenset({0})) == 1.0
    assert attended.density(frozenset({1, 2})) < 0.8
    assert [len(calls) for calls in attended.prefill.values()] == [1, 1, 1]
    attended.reset()
    assert attended.density() == 1.0


def test_generation_equals_sdpa_where_pages_fit_the_budget() -> None:
    sparse, dense = model(), model("sdpa")
    attended = use_sparsity(sparse, profile(0.0, budget=512))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(sparse.generate(tokens(100), **options), dense.generate(tokens(100), **options))
    assert [one.causal // 4 for one in attended.decode[2]] == list(range(101, 108))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    sparse = model()
    use_sparsity(sparse, profile(0.9))
    short, long = tokens(90), tokens(130, seed=2)
    pad = torch.zeros(1, 40, dtype=torch.long)
    padded = torch.cat([pad, short] if side == "left" else [short, pad], 1)
    mask = torch.ones(2, 130, dtype=torch.long)
    here = slice(40, None) if side == "left" else slice(90)
    mask[0] = 0
    mask[0, here] = 1
    both = sparse(torch.cat([padded, long]), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    assert rms_ratio(both[0, here], logits(sparse, short)[0]) < 1e-5
    assert rms_ratio(both[1], logits(sparse, long)[0]) < 1e-5


def test_what_it_cannot_do_it_refuses_by_name() -> None:
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        use_sparsity(model("sdpa"), profile())
    plain = model()
    with pytest.raises(ValueError, match="use_sparsity"):
        logits(plain, tokens(40))
    use_sparsity(plain, profile())
    layer = plain.model.layers[0].self_attn
    q = torch.zeros(1, 4, 8, 8)
    for option in ("sliding_window", "softcap", "s_aux"):
        with pytest.raises(ValueError, match=option):
            attend(layer, q, q[:, :2], q[:, :2], None, **{option: 4.0})
    with pytest.raises(ValueError, match="no gradients"):
        attend(layer, q, q[:, :2], q[:, :2], None, dropout=0.1)
    with pytest.raises(ValueError, match="no gradients"):
        plain(tokens(40))
