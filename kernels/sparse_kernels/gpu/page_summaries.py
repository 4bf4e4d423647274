"""Page summaries in Triton: the pages that were written, and only these, summarized on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_device, check_page, looked_at
from sparse_kernels.gpu.launches import Launcher
from sparse_kernels.layout.page_summaries import PageSummaries


def summarize_pages(
    summaries: PageSummaries, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, filled: torch.Tensor
) -> None:
    """Recomputes the summaries of ``pages`` in place; what :meth:`sparse_kernels.PageSummaries.update` does.

    No value is read back, so it may be captured in a CUDA graph. A page may stand in ``pages`` twice when both say the
    same.

    Args:
        summaries: of the layer.
        keys: the layer's key cache, ``[all pages, page, Hkv, D]``.
        values: the layer's value cache, same shape and layout.
        pages: int32 ``[N]``, physical pages that were written; negative ones are passed over. Whether there are such
            pages is looked at on a CPU only.
        filled: int32 ``[N]``, valid tokens in each, 1 to the page size.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    there, page, kv_heads, dim = keys.shape
    check_page(page, dim)
    if keys.shape != values.shape or keys.stride() != values.stride() or keys.stride(3) != 1:
        raise ValueError("keys, values: must be laid out alike, the head dimension contiguous")
    if page != summaries.page_size or summaries.mean.shape != (there, kv_heads, dim):
        raise ValueError(f"summaries: are of pages of {summaries.page_size} tokens and {tuple(summaries.mean.shape)}")
    if pages.shape != filled.shape or pages.dtype != torch.int32 or filled.dtype != torch.int32:
        raise ValueError(f"pages, filled: {tuple(pages.shape)} and {tuple(filled.shape)}, not int32 of one length")
    check_device("pages, filled, summaries", keys, pages, filled, summaries.mean)
    if looked_at(keys) and pages.numel():
        if int(pages.max()) >= there:
            raise ValueError(f"pages: up to {int(pages.max())}, the cache has {there}")
        if not 0 < int(filled.min()) <= int(filled.max()) <= page:
            raise ValueError(f"filled: from {int(filled.min())} to {int(filled.max())}, pages hold 1 to {page}")
    _launch(
        (pages.numel(), kv_heads),
        keys, values, pages.contiguous(), filled.contiguous(),
        summaries.sub_mean, summaries.sub_count, summaries.mean, summaries.value_mean, summaries.spread,
        summaries.stale.view(torch.uint8), *keys.stride()[:3],
        PAGE=page, SUB=summaries.sub_page, HEADS=kv_heads, DIM=dim, num_warps=4 if dim <= 128 else 8,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def summarize(  # type: ignore[no-untyped-def]
    k, v, pages, filled, sub_means, sub_counts, means, value_means, spreads, stale,
    s_kp, s_kt, s_kh,
    PAGE: tl.constexpr, SUB: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One page of one KV head."""
    i_n = tl.program_id(0)
    page = tl.load(pages + i_n).to(tl.int64)
    if page >= 0:
        summarize_page(
            k, v, sub_means, sub_counts, means, value_means, spreads, stale,
            page, tl.load(filled + i_n), tl.program_id(1), 0, s_kp, s_kt, s_kh, PAGE, SUB, HEADS, DIM,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def summarize_page(  # type: ignore[no-untyped-def]
    k, v, sub_means, sub_counts, means, value_means, spreads, stale, page, count, i_h, first, s_kp, s_kt, s_kh,
    PAGE: tl.constexpr, SUB: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Writes a page's summaries of one KV head, sub-means from the ``first`` one on."""
    SUBS: tl.constexpr = PAGE // SUB
    ROWS: tl.constexpr = SUBS if SUBS > 16 else 16
    o_t = tl.arange(0, PAGE)
    o_d = tl.arange(0, DIM)
    o_s = tl.arange(0, ROWS)
    m_t = (o_t < count)[:, None]
    at = page * s_kp + i_h * s_kh + o_t[:, None] * s_kt + o_d[None, :]
    tokens = count.to(tl.float32)
    # Slots past the end may hold anything, NaN included.
    b_k = tl.load(k + at, mask=m_t, other=0.0)
    b_v = tl.load(v + at, mask=m_t, other=0.0)
    # Sums by sub-page as a product with zeros and ones, which is exact and takes few registers.
    ones = tl.where(o_t[None, :] // SUB == o_s[:, None], 1.0, 0.0).to(b_k.dtype)
    b_value = tl.sum(tl.dot(ones, b_v, input_precision="ieee"), 0) / tokens
    tl.store(value_means + (page * HEADS + i_h) * DIM + o_d, b_value)
    b_sum = tl.dot(ones, b_k, input_precision="ieee")
    b_mean = tl.sum(b_sum, 0) / tokens
    tl.store(means + (page * HEADS + i_h) * DIM + o_d, b_mean)
    b_count = tl.minimum(tl.maximum(count - o_s * SUB, 0), SUB)
    p_sub = sub_means + ((page * SUBS + o_s) * HEADS + i_h)[:, None] * DIM + o_d[None, :]
    b_sub = b_sum / tl.maximum(b_count, 1)[:, None].to(tl.float32)
    tl.store(p_sub, b_sub, mask=((o_s >= first) & (o_s < SUBS))[:, None])
    # About the mean rather than by the mean of squares, which cancels where keys lie far from zero.
    b_off = tl.where(m_t, b_k.to(tl.float32) - b_mean[None, :], 0.0)
    tl.store(spreads + page * HEADS + i_h, tl.sqrt(tl.sum(b_off * b_off) / (tokens * DIM)))
    if i_h == 0:
        tl.store(sub_counts + page * SUBS + o_s, b_count.to(tl.int16), mask=o_s < SUBS)
        tl.store(stale + page, 0)


_launch = Launcher(summarize)
