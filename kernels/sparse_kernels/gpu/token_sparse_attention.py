"""Token-level top-k attention in Triton: index scores, the best tokens of each query, attention over just these.

DeepSeek sparse attention (DeepSeek-V3.2, arXiv 2512.02556) for grouped queries, and for the latent layout of MLA, in
which all heads share one key and value of low rank. Shapes depend on no data, so that a CUDA graph can replay them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_dim, generation, padded_rows
from sparse_kernels.gpu.hopper import gluon_module
from sparse_kernels.gpu.latent_attention import attend_again, check_latent, portable_latent_attention

_SCORED_ROWS = 64
_SCORED_TOKENS = 64
_TOKENS_AT_ONCE = 64
# From so many heads on the Gluon kernel attends, whose items are of 64.
_LEAST_HOPPER_HEADS = 16


def lightning_scores(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, prefix: int) -> torch.Tensor:
    """What the lightning indexer thinks of each token for each query: ``sum over heads of w relu(q . k)``.

    Args:
        q: ``[T, J, D]``, index queries.
        k: ``[S, D]``, index keys of all tokens.
        weights: float32 ``[T, J]``, of the index heads.
        prefix: position of the first query.

    Returns:
        float32 ``[T, S]``, negative infinity for tokens after the query.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    queries, heads, dim = q.shape
    check_dim("q", dim)
    if k.shape[1:] != (dim,) or weights.shape != (queries, heads):
        raise ValueError(f"k, weights: {tuple(k.shape)} and {tuple(weights.shape)} are not those of q {tuple(q.shape)}")
    if prefix + queries > k.shape[0]:
        raise ValueError(f"k: {k.shape[0]} tokens do not cover {prefix + queries}")
    tokens = k.shape[0]
    scores = torch.empty(queries, tokens, dtype=torch.float32, device=q.device)
    score_tokens[(triton.cdiv(queries, _SCORED_ROWS), triton.cdiv(tokens, _SCORED_TOKENS))](
        q.contiguous(), k.contiguous(), weights.contiguous(), scores, queries, tokens, heads, prefix,
        DIM=dim, ROWS=_SCORED_ROWS, TOKENS=_SCORED_TOKENS,
    )  # fmt: skip
    return scores


def select_tokens(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` tokens of highest score of each query, the best first.

    Returns:
        int32 ``[T, count]``; -1 where a query sees fewer.

    Raises:
        ValueError: when ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count: must be at least 1 token, not {count}")
    found = scores.topk(min(count, scores.shape[1]), dim=-1)
    chosen = torch.where(found.values == float("-inf"), -1, found.indices).int()
    return torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]), value=-1)


def token_sparse_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of each query over its own tokens.

    Args:
        q: ``[T, Hq, D]``.
        keys: ``[S, Hkv, D]``.
        values: same shape and layout.
        tokens: int32 ``[T, 1, count]``, one choice for all heads, or ``[T, Hkv, count]``; -1 stands for none.
        scale: softmax scale.

    Returns:
        ``[T, Hq, D]`` in q's dtype; zero for a query without tokens.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    queries, heads, dim = q.shape
    kv_heads = keys.shape[1]
    check_dim("q", dim)
    if heads % kv_heads or keys.shape != values.shape or keys.shape[2] != dim:
        raise ValueError(f"keys, values: {tuple(keys.shape)} and {tuple(values.shape)} do not fit q {tuple(q.shape)}")
    if q.stride(2) != 1 or keys.stride(2) != 1 or keys.stride() != values.stride():
        raise ValueError("q, keys, values: the head dimension must be contiguous, keys and values laid out alike")
    if tokens.shape[0] != queries or tokens.shape[1] not in (1, kv_heads) or tokens.dtype != torch.int32:
        raise ValueError(
            f"tokens: {tuple(tokens.shape)} of {tokens.dtype}, not int32 [{queries}, 1 or {kv_heads}, count]"
        )
    tokens = tokens.contiguous()
    out = torch.empty_like(q)
    group = heads // kv_heads
    attend_tokens[(queries, kv_heads)](
        q, keys, values, tokens, out, scale, tokens.shape[2],
        tokens.stride(0), tokens.stride(1) if tokens.shape[1] > 1 else 0,
        *q.stride()[:2], *keys.stride()[:2], *out.stride()[:2],
        DIM=dim, GROUP=group, ROWS=padded_rows(group), TOKENS=_TOKENS_AT_ONCE,
    )  # fmt: skip
    return out


def token_sparse_latent_attention(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    tokens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same over MLA's latent cache: a key is latent and rotary part, a value the latent part.

    Args:
        q_latent: ``[T, H, R]``, queries projected into the latent space.
        q_rope: ``[T, H, P]``, their rotary part.
        latent: ``[S, R]``.
        rope: ``[S, P]``.
        tokens: int32 ``[T, count]``, shared by all heads; -1 stands for none.
        scale: softmax scale.

    Returns:
        ``[T, H, R]``, in the latent space and q's dtype; zero for a query without tokens.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_latent(q_latent, q_rope, latent, rope, tokens)
    queries, heads, rank = q_latent.shape
    turned = q_rope.shape[2]
    implementation = latent_implementation(q_latent.device, q_latent.dtype, heads, rank, turned)
    kernels = gluon_module("latent_attention") if implementation == "gluon" else None
    if kernels is None or not queries * tokens.shape[1] or not scale > 0:
        return portable_latent_attention(q_latent, q_rope, latent, rope, tokens, scale)
    q, turned_q, k, turned_k = (
        each if kernels.taken(each) else each.contiguous() for each in (q_latent, q_rope, latent, rope)
    )
    tokens = tokens.contiguous()
    out = torch.empty_like(q_latent, memory_format=torch.contiguous_format)
    lost = kernels.attend(q, turned_q, k, turned_k, tokens, out, scale)
    attend_again(q, turned_q, k, turned_k, tokens, out, scale, lost, kernels.HEADS.value)
    return out


def latent_implementation(device: torch.device, dtype: torch.dtype, heads: int, rank: int, rope: int) -> str:
    """Which kernel attends a latent cache: ``gluon``, on NVIDIA Hopper, or ``triton``."""
    known = (rank, rope) == (512, 64) and heads >= _LEAST_HOPPER_HEADS and dtype in (torch.bfloat16, torch.float16)
    return "gluon" if known and generation(device) == 9 and gluon_module("latent_attention") is not None else "triton"


@triton.jit  # type: ignore[untyped-decorator]
def score_tokens(  # type: ignore[no-untyped-def]
    q, k, weights, scores, queries, tokens, heads, prefix,
    DIM: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Index scores of a tile of queries and tokens."""
    o_r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    o_t = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    o_d = tl.arange(0, DIM)
    m_r = o_r < queries
    m_t = o_t < tokens
    # [TOKENS, DIM]
    b_k = tl.load(k + o_t[:, None] * DIM + o_d[None, :], mask=m_t[:, None], other=0.0)
    b_s = tl.zeros([ROWS, TOKENS], tl.float32)
    for i_h in range(heads):
        b_q = tl.load(q + (o_r[:, None] * heads + i_h) * DIM + o_d[None, :], mask=m_r[:, None], other=0.0)
        b_w = tl.load(weights + o_r * heads + i_h, mask=m_r, other=0.0)
        b_s += b_w[:, None] * tl.maximum(tl.dot(b_q, tl.trans(b_k), input_precision="ieee"), 0.0)
    b_s = tl.where(o_t[None, :] <= (prefix + o_r)[:, None], b_s, float("-inf"))
    tl.store(scores + o_r[:, None] * tokens + o_t[None, :], b_s, mask=m_r[:, None] & m_t[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def attend_tokens(  # type: ignore[no-untyped-def]
    q, k, v, chosen, out, scale, count,
    s_ct, s_ch, s_qt, s_qh, s_kt, s_kh, s_ot, s_oh,
    DIM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The query heads of one KV head of one token over its chosen tokens."""
    i_t = tl.program_id(0).to(tl.int64)
    i_kv = tl.program_id(1)
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, DIM)
    o_n = tl.arange(0, TOKENS)
    m_r = o_r < GROUP
    o_h = i_kv * GROUP + o_r
    b_q = tl.load(q + i_t * s_qt + o_h[:, None] * s_qh + o_d[None, :], mask=m_r[:, None], other=0.0)
    b_m = tl.full([ROWS], float("-inf"), tl.float32)
    b_l = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(0, count, TOKENS):
        at = tl.load(chosen + i_t * s_ct + i_kv * s_ch + first + o_n, mask=first + o_n < count, other=-1).to(tl.int64)
        m_n = at >= 0
        o_in = (at * s_kt + i_kv * s_kh)[:, None] + o_d[None, :]
        b_k = tl.load(k + o_in, mask=m_n[:, None], other=0.0)
        b_v = tl.load(v + o_in, mask=m_n[:, None], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k)) * (scale * 1.4426950408889634)
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_m, tl.max(b_s, 1))
        # While nothing was attended the maximum is negative infinity, from which nothing can be subtracted.
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_base[:, None])
        b_old = tl.exp2(b_m - b_base)
        b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v)
        b_l = b_l * b_old + tl.sum(b_p, 1)
        b_m = b_new
    b_out = b_acc / tl.where(b_l == 0, 1.0, b_l)[:, None]
    tl.store(out + i_t * s_ot + o_h[:, None] * s_oh + o_d[None, :], b_out.to(out.dtype.element_ty), mask=m_r[:, None])
