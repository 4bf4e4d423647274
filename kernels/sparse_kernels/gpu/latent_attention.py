"""Attention over chosen tokens of MLA's latent cache in Triton, on every device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_dim, processors
from sparse_kernels.gpu.launches import Launcher

_TOKENS_AT_ONCE = 32
_HEADS = 16
# Items whose flags a program looks at together.
_FLAGS = 64


def portable_latent_attention(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    tokens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """By the kernel of every device what ``token_sparse_attention.token_sparse_latent_attention`` gives.

    Args: as there, and as :func:`check_latent` takes them.
    """
    queries, heads, rank = q_latent.shape
    parts = tuple(each if each.stride(-1) == 1 else each.contiguous() for each in (q_latent, q_rope, latent, rope))
    tokens = tokens.contiguous()
    out = torch.empty_like(q_latent, memory_format=torch.contiguous_format)
    attend_latent[(queries, triton.cdiv(heads, _HEADS))](
        *parts, tokens, out, scale, tokens.shape[1], heads, *_strides(*parts),
        RANK=rank, ROPE=q_rope.shape[2], ROWS=_HEADS, TOKENS=_TOKENS_AT_ONCE,
    )  # fmt: skip
    return out


def attend_again(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    tokens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    lost: torch.Tensor,
    heads_of_item: int,
) -> None:
    """Writes over ``out`` the items of so many heads that are flagged in ``lost``, int32 ``[items]``."""
    heads, rank = q_latent.shape[1:]
    parts = q_latent, q_rope, latent, rope
    items = lost.numel()
    programs = min(items, 2 * processors(out.device)) if out.is_cuda else 1
    _launch_lost(
        (programs,), *parts, tokens, out, lost, float(scale), tokens.shape[1], heads, items, *_strides(*parts),
        RANK=rank, ROPE=q_rope.shape[2], ROWS=_HEADS, TOKENS=_TOKENS_AT_ONCE, HEADS=heads_of_item, FLAGS=_FLAGS,
    )  # fmt: skip


def check_latent(
    q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor, tokens: torch.Tensor
) -> None:
    """Checks queries and choice against a latent cache.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    queries, heads, rank = q_latent.shape
    turned = q_rope.shape[2]
    check_dim("q_latent", rank)
    check_dim("q_rope", turned)
    if q_rope.shape[:2] != (queries, heads) or latent.shape[1] != rank or rope.shape != (latent.shape[0], turned):
        raise ValueError(f"latent, rope: {tuple(latent.shape)} and {tuple(rope.shape)} do not fit the queries")
    if tokens.dim() != 2 or tokens.shape[0] != queries or tokens.dtype != torch.int32:
        raise ValueError(f"tokens: {tuple(tokens.shape)} of {tokens.dtype}, not int32 [{queries}, count]")


def _strides(q: torch.Tensor, q_rope: torch.Tensor, k: torch.Tensor, k_rope: torch.Tensor) -> tuple[int, ...]:
    return *q.stride()[:2], *q_rope.stride()[:2], k.stride(0), k_rope.stride(0)


@triton.jit  # type: ignore[untyped-decorator]
def attend_latent(  # type: ignore[no-untyped-def]
    q, q_rope, k, k_rope, chosen, out, scale, count, heads, s_qt, s_qh, s_rt, s_rh, s_k, s_kr,
    RANK: tl.constexpr, ROPE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Some heads of one token over its chosen tokens of a latent cache."""
    _attend_heads(
        q, q_rope, k, k_rope, chosen, out, scale, count, heads, s_qt, s_qh, s_rt, s_rh, s_k, s_kr,
        tl.program_id(0), tl.program_id(1) * ROWS, RANK, ROPE, ROWS, TOKENS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["items"])  # type: ignore[untyped-decorator]
def attend_lost(  # type: ignore[no-untyped-def]
    q, q_rope, k, k_rope, chosen, out, lost, scale, count, heads, items, s_qt, s_qh, s_rt, s_rh, s_k, s_kr,
    RANK: tl.constexpr, ROPE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    FLAGS: tl.constexpr,
):  # fmt: skip
    """The same for items of ``HEADS`` heads that are flagged in ``lost``."""
    programs = tl.num_programs(0)
    groups = tl.cdiv(heads, HEADS)
    o_i = tl.program_id(0) + tl.arange(0, FLAGS) * programs
    for first in range(0, items, FLAGS * programs):
        if tl.max(tl.load(lost + first + o_i, mask=first + o_i < items, other=0), 0) > 0:
            for item in range(first + tl.program_id(0), tl.minimum(items, first + FLAGS * programs), programs):
                if tl.load(lost + item) > 0:
                    for row in range(item % groups * HEADS, tl.minimum(heads, (item % groups + 1) * HEADS), ROWS):
                        _attend_heads(
                            q, q_rope, k, k_rope, chosen, out, scale, count, heads,
                            s_qt, s_qh, s_rt, s_rh, s_k, s_kr, item // groups, row, RANK, ROPE, ROWS, TOKENS,
                        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _attend_heads(  # type: ignore[no-untyped-def]
    q, q_rope, k, k_rope, chosen, out, scale, count, heads, s_qt, s_qh, s_rt, s_rh, s_k, s_kr, i_t, row,
    RANK: tl.constexpr, ROPE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    i_t = i_t.to(tl.int64)
    o_h = row + tl.arange(0, ROWS)
    o_d = tl.arange(0, RANK)
    o_p = tl.arange(0, ROPE)
    o_n = tl.arange(0, TOKENS)
    m_h = o_h < heads
    b_q = tl.load(q + i_t * s_qt + o_h[:, None] * s_qh + o_d[None, :], mask=m_h[:, None], other=0.0)
    b_r = tl.load(q_rope + i_t * s_rt + o_h[:, None] * s_rh + o_p[None, :], mask=m_h[:, None], other=0.0)
    b_m = tl.full([ROWS], float("-inf"), tl.float32)
    b_l = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, RANK], tl.float32)
    for first in range(0, count, TOKENS):
        at = tl.load(chosen + i_t * count + first + o_n, mask=first + o_n < count, other=-1).to(tl.int64)
        m_n = at >= 0
        # The latent part is key and value at once.
        b_k = tl.load(k + at[:, None] * s_k + o_d[None, :], mask=m_n[:, None], other=0.0)
        b_kr = tl.load(k_rope + at[:, None] * s_kr + o_p[None, :], mask=m_n[:, None], other=0.0)
        b_s = (tl.dot(b_q, tl.trans(b_k)) + tl.dot(b_r, tl.trans(b_kr))) * (scale * 1.4426950408889634)
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_m, tl.max(b_s, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_base[:, None])
        b_old = tl.exp2(b_m - b_base)
        b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_k.dtype), b_k)
        b_l = b_l * b_old + tl.sum(b_p, 1)
        b_m = b_new
    b_out = b_acc / tl.where(b_l == 0, 1.0, b_l)[:, None]
    tl.store(
        out + (i_t * heads + o_h)[:, None] * RANK + o_d[None, :], b_out.to(out.dtype.element_ty), mask=m_h[:, None]
    )


_launch_lost = Launcher(attend_lost)
