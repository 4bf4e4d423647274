from __future__ import annotations

import pytest
import torch
from sparse_kernels.gpu.token_sparse_attention import (
    lightning_scores,
    select_tokens,
    token_sparse_attention,
    token_sparse_latent_attention,
)
from sparse_kernels.reference_tokens import (
    lightning_scores_reference,
    token_sparse_attention_reference,
    token_sparse_latent_attention_reference,
)
from support.paging import rms_ratio

SCALE = 16**-0.5


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def choice(queries: int, heads: int, prefix: int, count: int) -> torch.Tensor:
    """Random tokens before each query, fewer for early ones."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(queries * heads, prefix + queries, generator=generator)
    rows = prefix + torch.arange(queries).repeat_interleave(heads)
    scores.masked_fill_(torch.arange(prefix + queries)[None] > rows[:, None], float("-inf"))
    return select_tokens(scores, count).view(queries, heads, count)


@pytest.mark.parametrize("prefix", [0, 5, 100])
@pytest.mark.parametrize(("queries", "heads"), [(1, 4), (63, 1), (65, 3)])
def test_index_scores_match_their_definition(queries: int, heads: int, prefix: int) -> None:
    q, k = randoms(queries, heads, 16), randoms(prefix + queries, 16, seed=1)
    weights = randoms(queries, heads, seed=2)
    found = lightning_scores(q, k, weights, prefix)
    wanted = lightning_scores_reference(q, k, weights, prefix)
    assert torch.equal(found.isinf(), wanted.isinf())
    seen = ~wanted.isinf()
    assert rms_ratio(found[seen], wanted[seen]) < 1e-5


def test_the_best_tokens_come_first_and_missing_ones_are_marked() -> None:
    scores = torch.tensor([[0.3, float("-inf"), float("-inf")], [0.1, 0.9, 0.5]])
    assert select_tokens(scores, 2).tolist() == [[0, -1], [1, 2]]
    assert select_tokens(scores, 5).tolist() == [[0, -1, -1, -1, -1], [1, 2, 0, -1, -1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("queries", "prefix", "count"), [(1, 0, 8), (3, 200, 64), (17, 3, 65), (2, 300, 130)])
def test_matches_the_definition(queries: int, prefix: int, count: int, shared: bool, dtype: torch.dtype) -> None:
    q = randoms(queries, 6, 16, dtype=dtype)
    keys, values = (randoms(prefix + queries, 2, 16, seed=seed, dtype=dtype) for seed in (1, 2))
    tokens = choice(queries, 1 if shared else 2, prefix, count)
    found = token_sparse_attention(q, keys, values, tokens, SCALE)
    wanted = token_sparse_attention_reference(q, keys, values, tokens, SCALE)
    assert rms_ratio(found, wanted) < (1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("heads", [1, 16, 20])
@pytest.mark.parametrize(("queries", "prefix", "count"), [(1, 0, 8), (5, 100, 33), (2, 90, 70)])
def test_latent_attention_matches_its_definition(queries: int, prefix: int, count: int, heads: int) -> None:
    q, q_rope = randoms(queries, heads, 64), randoms(queries, heads, 16, seed=1)
    latent, rope = randoms(prefix + queries, 64, seed=2), randoms(prefix + queries, 16, seed=3)
    tokens = choice(queries, 1, prefix, count)[:, 0]
    found = token_sparse_latent_attention(q, q_rope, latent, rope, tokens, SCALE)
    wanted = token_sparse_latent_attention_reference(q, q_rope, latent, rope, tokens, SCALE)
    assert rms_ratio(found, wanted) < 1e-5


def test_all_tokens_are_dense_attention() -> None:
    q, keys, values = (randoms(40, 2, 16, seed=seed) for seed in range(3))
    tokens = choice(40, 1, 0, 40)
    found = token_sparse_attention(q, keys, values, tokens, SCALE)
    heads = (part.transpose(0, 1)[None] for part in (q, keys, values))
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, scale=SCALE)[0].transpose(0, 1)
    assert rms_ratio(found, wanted) < 1e-5


def test_future_and_unchosen_tokens_change_nothing() -> None:
    q, keys, values = (randoms(40, 2, 16, seed=seed) for seed in range(3))
    tokens = choice(40, 1, 0, 8)
    before = token_sparse_attention(q, keys, values, tokens, SCALE)
    chosen = set(tokens[20].flatten().tolist())
    for token in range(40):
        if token not in chosen:
            keys[token], values[token] = float("nan"), float("nan")
    after = token_sparse_attention(q[20:21], keys, values, tokens[20:21], SCALE)
    assert torch.equal(before[20:21], after)


def test_a_query_without_tokens_is_zero() -> None:
    q, keys, values = (randoms(2, 2, 16, seed=seed) for seed in range(3))
    tokens = torch.tensor([[[-1, -1]], [[-1, 0]]], dtype=torch.int32)
    found = token_sparse_attention(q, keys, values, tokens, SCALE)
    assert torch.equal(found[0], torch.zeros(2, 16))
    torch.testing.assert_close(found[1], values[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: token_sparse_attention(t(2, 3, 16), t(4, 2, 16), t(4, 2, 16), t.index, 1.0), "keys, values: "),
        (lambda t: token_sparse_attention(t(2, 2, 24), t(4, 2, 24), t(4, 2, 24), t.index, 1.0), "q: dimension 24"),
        (lambda t: token_sparse_attention(t(2, 2, 16), t(4, 2, 16), t(4, 2, 16), t.index.long(), 1.0), "tokens: "),
        (lambda t: lightning_scores(t(2, 2, 16), t(4, 8), t(2, 2), 0), "k, weights: "),
        (lambda t: lightning_scores(t(2, 2, 16), t(4, 16), t(2, 2), 3), "k: 4 tokens do not cover 5"),
        (lambda t: select_tokens(t(2, 4), 0), "count: must be at least 1"),
        (
            lambda t: token_sparse_latent_attention(t(2, 2, 16), t(2, 2, 16), t(4, 16), t(3, 16), t.index[:, 0], 1.0),
            "latent, rope: ",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    class Tensors:
        index = torch.zeros(2, 1, 3, dtype=torch.int32)

        def __call__(self, *shape: int) -> torch.Tensor:
            return torch.zeros(shape)

    with pytest.raises(ValueError, match=message):
        call(Tensors())
