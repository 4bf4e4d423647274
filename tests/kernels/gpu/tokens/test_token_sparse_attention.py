from __future__ import annotations

import pytest
import torch
from sparse_kernels.gpu.latent_attention import attend_again
from sparse_kernels.gpu.token_sparse_attention import (
    lightning_scores,
    select_tokens,
    token_sparse_attention,
    token_sparse_latent_attention,
)
from sparse_kernels.reference.token_sparse_attention import (
    lightning_scores_reference,
    token_sparse_attention_reference,
    token_sparse_latent_attention_reference,
)
from support.kernels.devices import EXACT, INTERPRETED, captured, launch
from support.kernels.paging import rms_ratio

SCALE = 16**-0.5


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latents(
    queries: int, prefix: int, heads: int, rank: int, rotary: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Queries and cache of MLA, latent and rotary part of each."""
    shapes = [(queries, heads, rank), (queries, heads, rotary), (prefix + queries, rank), (prefix + queries, rotary)]
    return tuple(randoms(*shape, seed=seed + number, dtype=dtype) for number, shape in enumerate(shapes))


def choice(queries: int, heads: int, prefix: int, count: int) -> torch.Tensor:
    """Random tokens before each query, fewer for early ones."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(queries * heads, prefix + queries, generator=generator)
    rows = prefix + torch.arange(queries).repeat_interleave(heads)
    scores.masked_fill_(torch.arange(prefix + queries)[None] > rows[:, None], float("-inf"))
    return select_tokens(scores, count).view(queries, heads, count)


@pytest.mark.parametrize("prefix", [0, 5, 100])
@pytest.mark.parametrize(("queries", "heads"), [(1, 4), (63, 1), (65, 3)])
def test_index_scores_match_their_definition(queries: int, heads: int, prefix: int, dtype: torch.dtype) -> None:
    q, k = randoms(queries, heads, 16, dtype=dtype), randoms(prefix + queries, 16, seed=1, dtype=dtype)
    weights = randoms(queries, heads, seed=2)
    found = launch(lightning_scores, q, k, weights, prefix)
    wanted = lightning_scores_reference(q, k, weights, prefix)
    assert torch.equal(found.isinf(), wanted.isinf())
    seen = ~wanted.isinf()
    # Products are added up in float32 in every dtype.
    assert rms_ratio(found[seen], wanted[seen]) < 1e-5


def test_the_best_tokens_come_first_and_missing_ones_are_marked() -> None:
    scores = torch.tensor([[0.3, float("-inf"), float("-inf")], [0.1, 0.9, 0.5]])
    assert launch(select_tokens, scores, 2).tolist() == [[0, -1], [1, 2]]
    assert launch(select_tokens, scores, 5).tolist() == [[0, -1, -1, -1, -1], [1, 2, 0, -1, -1]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("queries", "prefix", "count"), [(1, 0, 8), (3, 200, 64), (17, 3, 65), (2, 300, 130)])
def test_matches_the_definition(
    queries: int, prefix: int, count: int, shared: bool, dtype: torch.dtype, tolerance: float
) -> None:
    q = randoms(queries, 6, 16, dtype=dtype)
    keys, values = (randoms(prefix + queries, 2, 16, seed=seed, dtype=dtype) for seed in (1, 2))
    tokens = choice(queries, 1 if shared else 2, prefix, count)
    found = launch(token_sparse_attention, q, keys, values, tokens, SCALE)
    wanted = token_sparse_attention_reference(q, keys, values, tokens, SCALE)
    assert found.dtype == dtype
    assert rms_ratio(found, wanted) < tolerance


@pytest.mark.parametrize("heads", [1, 16, 20])
@pytest.mark.parametrize(("queries", "prefix", "count"), [(1, 0, 8), (5, 100, 33), (2, 90, 70)])
def test_latent_attention_matches_its_definition(
    queries: int, prefix: int, count: int, heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = latents(queries, prefix, heads, 64, 16, dtype)
    tokens = choice(queries, 1, prefix, count)[:, 0]
    found = launch(token_sparse_latent_attention, *given, tokens, SCALE)
    assert rms_ratio(found, token_sparse_latent_attention_reference(*given, tokens, SCALE)) < tolerance


def test_only_flagged_items_are_attended_again(dtype: torch.dtype, tolerance: float) -> None:
    # Items of 32 heads, of which the last of a query has 8.
    given, out = latents(5, 100, 72, 64, 16, dtype), torch.full((5, 72, 64), 7.0, dtype=dtype)
    tokens, flags = choice(5, 1, 100, 33)[:, 0], torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]])

    def again(*each: torch.Tensor) -> torch.Tensor:
        attend_again(*each, SCALE, flags.flatten().int().to(each[0].device), 32)
        return each[-1]

    found = launch(again, *given, tokens, out)
    flagged = flags.bool().repeat_interleave(32, 1)[:, :72]
    wanted = token_sparse_latent_attention_reference(*given, tokens, SCALE)
    assert (found[~flagged] == 7.0).all()
    assert rms_ratio(found[flagged], wanted[flagged]) < tolerance


def test_a_cache_of_both_parts_side_by_side_is_read_as_it_lies(dtype: torch.dtype) -> None:
    q, q_rope, latent, rope = latents(3, 90, 20, 64, 16, dtype)
    tokens = choice(3, 1, 90, 40)[:, 0]

    def beside(queries: torch.Tensor, cache: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        parts = *queries.split((64, 16), -1), *cache.split((64, 16), -1)
        return token_sparse_latent_attention(*parts, chosen, SCALE)

    found = launch(beside, torch.cat([q, q_rope], -1), torch.cat([latent, rope], -1), tokens)
    assert torch.equal(found, launch(token_sparse_latent_attention, q, q_rope, latent, rope, tokens, SCALE))


def test_the_shape_of_deepseek_v32(dtype: torch.dtype, tolerance: float) -> None:
    # 128 heads over 512 + 64 dimensions and the best 2,048 tokens, of which the first row sees fewer; 64 index heads,
    # which the interpreter takes too long over.
    queries, prefix, index_heads = 2, 2046, 2 if INTERPRETED else 64
    scores = launch(
        lightning_scores, randoms(queries, index_heads, 128, dtype=dtype),
        randoms(prefix + queries, 128, seed=1, dtype=dtype), randoms(queries, index_heads, seed=2), prefix,
    )  # fmt: skip
    tokens = launch(select_tokens, scores, 2048)
    assert tokens[0, -1] == -1
    assert tokens[0, :-1].min() >= 0
    given, scale = latents(queries, prefix, 128, 512, 64, dtype), 192**-0.5
    found = launch(token_sparse_latent_attention, *given, tokens, scale)
    assert rms_ratio(found, token_sparse_latent_attention_reference(*given, tokens, scale)) < tolerance


def test_a_replayed_step_takes_what_then_stands_in_its_tensors(dtype: torch.dtype, tolerance: float) -> None:
    def step(q, k, weights, q_latent, q_rope, latent, rope):
        tokens = select_tokens(lightning_scores(q, k, weights, k.shape[0] - q.shape[0]), 33)
        return tokens, token_sparse_latent_attention(q_latent, q_rope, latent, rope, tokens, SCALE)

    def drawn(seed: int) -> tuple[torch.Tensor, ...]:
        index = randoms(2, 4, 16, seed=seed, dtype=dtype), randoms(102, 16, seed=seed + 1, dtype=dtype)
        return *index, randoms(2, 4, seed=seed + 2), *latents(2, 100, 20, 64, 16, dtype, seed)

    replay = captured(step, *drawn(0))
    for seed in (10, 20):
        given = drawn(seed)
        tokens, found = replay(*given)
        scores = lightning_scores_reference(*given[:3], 100)
        best = select_tokens(scores, 33)
        # Tokens that nearly tie may change places with the rounding of a score, and no others.
        assert all(len(set(row.tolist())) == 33 for row in tokens)
        weakest = scores.gather(1, best.long()).amin(1, keepdim=True)
        assert (scores.gather(1, tokens.long()) >= weakest - tolerance * scores[scores.isfinite()].abs().amax()).all()
        assert rms_ratio(found, token_sparse_latent_attention_reference(*given[3:], tokens, SCALE)) < tolerance


def test_all_tokens_are_dense_attention() -> None:
    q, keys, values = (randoms(40, 2, 16, seed=seed) for seed in range(3))
    tokens = choice(40, 1, 0, 40)
    found = launch(token_sparse_attention, q, keys, values, tokens, SCALE)
    heads = (part.double().transpose(0, 1)[None] for part in (q, keys, values))
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, scale=SCALE)[0].transpose(0, 1)
    assert rms_ratio(found, wanted) < EXACT


def test_future_and_unchosen_tokens_change_nothing(dtype: torch.dtype) -> None:
    q, keys, values = (randoms(40, 2, 16, seed=seed, dtype=dtype) for seed in range(3))
    tokens = choice(40, 1, 0, 8)
    before = launch(token_sparse_attention, q, keys, values, tokens, SCALE)
    chosen = set(tokens[20].flatten().tolist())
    for token in range(40):
        if token not in chosen:
            keys[token], values[token] = float("nan"), float("nan")
    after = launch(token_sparse_attention, q[20:21], keys, values, tokens[20:21], SCALE)
    assert torch.equal(before[20:21], after)


def test_a_query_without_tokens_is_zero() -> None:
    q, keys, values = (randoms(2, 2, 16, seed=seed) for seed in range(3))
    tokens = torch.tensor([[[-1, -1]], [[-1, 0]]], dtype=torch.int32)
    found = launch(token_sparse_attention, q, keys, values, tokens, SCALE)
    assert torch.equal(found[0], torch.zeros(2, 16))
    torch.testing.assert_close(found[1], values[0], rtol=EXACT, atol=EXACT)


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
