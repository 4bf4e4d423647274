"""Token-level top-k attention as in DeepSeek-V3.2: index scores, the best tokens, attention over a latent cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from sparse_kernels.gpu.latent_attention import portable_latent_attention
from sparse_kernels.gpu.token_sparse_attention import (
    latent_implementation,
    lightning_scores,
    select_tokens,
    token_sparse_latent_attention,
)
from sparsity_serving.benchmark import Row, against

from sparsity_bench.kernels import dense
from sparsity_bench.kernels.gate import BOUNDS, Check, Gate
from sparsity_bench.kernels.timing import Clock

# What would stand beside it, were it installed.
_SGLANG_MODULE = "sglang.kernels.ops.attention.dsa.triton_sparse_mla_prefill"
RIVALS = (
    "sgl_kernel.flash_mla", "flash_mla", "deep_gemm", "sglang.kernels.ops.attention.flash_mla_interface",
    _SGLANG_MODULE,
)  # fmt: skip
_SGLANG = "SGLang's Triton sparse_mla_prefill"
# Queries with both parts, the cache likewise, chosen tokens and the scale; gives [queries, heads, rank].
Rival = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, int], torch.Tensor]


class TokenShape(NamedTuple):
    """Heads of a layer.

    Attributes:
        heads: query heads over the latent cache.
        rank: latent dimensions.
        rope: rotary dimensions.
        index_heads: of the indexer.
        index_dim: of each.
        top: tokens that a query attends.
    """

    heads: int
    rank: int
    rope: int
    index_heads: int
    index_dim: int
    top: int


V32 = TokenShape(128, 512, 64, 64, 128, 2048)
TINY = TokenShape(16, 64, 16, 2, 16, 64)
_ROWS = 2


def rows(
    shape: TokenShape, context: int, queries: int, clock: Clock, dtype: torch.dtype, passing: Gate
) -> Iterator[Row]:
    """The last ``queries`` tokens of a context."""
    generator = torch.Generator(device=clock.device).manual_seed(context)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=clock.device).to(dtype)

    index_q, index_k = normal(queries, shape.index_heads, shape.index_dim), normal(context, shape.index_dim)
    weights = normal(queries, shape.index_heads).float()
    q, q_rope = normal(queries, shape.heads, shape.rank), normal(queries, shape.heads, shape.rope)
    latent, rope = normal(context, shape.rank), normal(context, shape.rope)
    scale, prefix = (shape.index_dim + shape.rope) ** -0.5, context - queries
    what = (
        f"{queries} queries at {context} tokens, {shape.heads} heads, {shape.rank} + {shape.rope},"
        f" {shape.index_heads} index heads, top {shape.top}"
    )
    scores = lightning_scores(index_q, index_k, weights, prefix)
    tokens = select_tokens(scores, shape.top)
    seen = prefix + _ROWS
    exact = torch.einsum("tj,tjs->ts", weights[:_ROWS].double(), _products(index_q[:_ROWS], index_k[:seen]).relu())
    wanted = exact[-1].topk(min(shape.top, seen)).values
    missed = wanted.sum() - exact[-1][tokens[_ROWS - 1][tokens[_ROWS - 1] >= 0].long()].sum()
    off = scores[_ROWS - 1, :seen].double() - exact[-1]
    checks = (
        Check(f"lightning_scores, {what}", float(off.square().mean().sqrt() / exact[-1].square().mean().sqrt()), 1e-3),
        Check(f"select_tokens, {what}", float(missed / wanted.sum().abs()), 1e-3),
    )
    pairs = queries * context
    if passing.holds(*checks):
        taken = clock.times(lambda: lightning_scores(index_q, index_k, weights, prefix), sustained=False).cool
        yield from _timed("lightning_scores", what, taken, 2.0 * pairs * shape.index_heads * shape.index_dim)
        taken = clock.times(lambda: select_tokens(scores, shape.top), sustained=False).cool
        yield Row("select_tokens, cool", what, taken, "ms")
    right = _attended(q, q_rope, latent, rope, tokens, scale)
    flops = 2.0 * queries * shape.heads * min(shape.top, context) * (2 * shape.rank + shape.rope)
    kernels = {"token_sparse_latent_attention": token_sparse_latent_attention}
    # Beside the chosen kernel, in the same run, the one that runs everywhere.
    if latent_implementation(q.device, dtype, shape.heads, shape.rank, shape.rope) != "triton":
        kernels["token_sparse_latent_attention, portable"] = portable_latent_attention
    calls = {
        name: partial(attend, q, q_rope, latent, rope, tokens, scale) for name, attend in kernels.items()
    }  # fmt: skip
    theirs = sglang(dtype)
    if theirs is not None:
        # Theirs takes both parts side by side; to lay them so is not timed.
        joined = partial(theirs, torch.cat([q, q_rope], -1), torch.cat([latent, rope], -1), tokens, scale, shape.rank)
        if dense.runs(joined):
            calls = {_SGLANG: joined} | calls
    beside: float | None = None
    for name, call in calls.items():
        error = float((call()[:_ROWS].double() - right).square().mean().sqrt() / right.square().mean().sqrt())
        if not passing.holds(Check(f"{name}, {what}", error, BOUNDS[dtype])):
            continue
        taken = clock.times(call, sustained=False).cool
        beside = taken if name == _SGLANG else beside
        for row in _timed(name, what, taken, flops):
            yield against(row, _SGLANG, beside) if beside and row.unit == "ms" and name != _SGLANG else row


def sglang(dtype: torch.dtype) -> Rival | None:
    """SGLang's own attention over chosen tokens in Triton, which is of bfloat16; None where it does not load."""
    if dtype != torch.bfloat16 or dense.absent(_SGLANG_MODULE):
        return None
    found: Rival = import_module(_SGLANG_MODULE).sparse_mla_prefill
    return found


def _timed(name: str, what: str, taken: float, flops: float) -> Iterator[Row]:
    yield Row(f"{name}, cool", what, taken, "ms")
    yield Row(f"{name}, cool, rate", what, flops / (taken * 1e-3) / 1e12, "TFLOP/s")


def _products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.einsum("tjd,sd->tjs", q.double(), k.double())


def _attended(
    q: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor, tokens: torch.Tensor, scale: float
) -> torch.Tensor:
    """The first rows by the definition, float64 ``[rows, heads, rank]``."""
    found = []
    for row in range(_ROWS):
        mine = tokens[row][tokens[row] >= 0].long()
        scores = q[row].double() @ latent[mine].double().T + q_rope[row].double() @ rope[mine].double().T
        found.append((scores * scale).softmax(-1) @ latent[mine].double())
    return torch.stack(found)
