"""Block-sparse prefill over a batch of paged sequences: which kernel runs, and the portable one, in Triton.

One program attends one query tile of one query head: the blocks that the index keeps, the means of those that it
prunes, then the tile's own keys under the causal mask, in one online softmax (FlashAttention-2, arXiv 2307.08691).
On NVIDIA Hopper :mod:`sparse_kernels.gpu.hopper.block_sparse_prefill` does the same where it can.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_cache, check_device, check_rows, generation, looked_at
from sparse_kernels.gpu.hopper import gluon_module
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import UNITS, WIDTH, Corrections

_LOG2E = 1.4426950408889634
_MOST_DIM = 256
# Means of one tensor-core product.
_MEANS = 64


class PrefillOutput(NamedTuple):
    """What attention gives.

    Attributes:
        out: ``[rows, Hq, D]`` in the dtype of the queries.
        lse: float32 ``[rows, Hq]``, natural logarithm of the softmax's denominator.
    """

    out: torch.Tensor
    lse: torch.Tensor


def block_sparse_prefill(
    q: torch.Tensor,
    batch: PagedBatch,
    index: BlockIndex,
    scale: float,
    *,
    corrections: Corrections | None = None,
    window: int = 0,
    softcap: float = 0.0,
    skip_below: float = 0.0,
    into: PrefillOutput | None = None,
) -> PrefillOutput:
    """Causal attention of all queries of a batch over the blocks that an index keeps.

    What batch and index hold is looked at where they lie on a CPU; elsewhere
    :meth:`sparse_kernels.layout.batch.PagedBatch.check` looks when asked.

    Args:
        q: ``[rows, Hq, D]``, the queries of all sequences, one sequence after another.
        batch: keys, values and tiles.
        index: kept blocks of each KV head and tile.
        scale: softmax scale.
        corrections: means of pruned blocks; None leaves pruned blocks out.
        window: keys that a row sees, its own included, as in sliding-window models; 0 for all before it.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 leaves them.
        skip_below: a kept block whose largest weight, relative to the largest so far, lies below this for every row of
            a tile is not added; 0 adds all.
        into: what to write to; None for tensors of its own.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    rows, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    tile, tiles = batch.tiles.rows, batch.tiles.number.numel()
    _check(q, batch, index, corrections)
    if into is not None and (into.out.shape != q.shape or into.out.dtype != q.dtype or into.out.stride(2) != 1):
        raise ValueError(f"into: out is {tuple(into.out.shape)} {into.out.dtype}, not as q")
    if into is not None and (into.lse.shape != q.shape[:2] or not into.lse.is_contiguous()):
        raise ValueError(f"into: lse is {tuple(into.lse.shape)}, not {tuple(q.shape[:2])}, contiguous")
    if min(window, softcap) < 0 or not 0 <= skip_below < 1:
        raise ValueError("window and softcap: must be 0 or more; skip_below: must lie in [0, 1)")
    if into is None:
        into = PrefillOutput(q.new_empty(q.shape), torch.empty(rows, heads, dtype=torch.float32, device=q.device))
    out, lse = into
    if not tiles:
        return into
    if not (window or softcap or skip_below):
        kernels = (
            gluon_module("block_sparse_prefill")
            if implementation(q.device, q.dtype, dim, page, tile) == "gluon"
            else None
        )
        if kernels is not None and kernels.fits(q, batch, out, scale):
            kernels.attend(q, batch, index, scale, corrections, out, lse)
            return into
    none = Corrections(q, q, index.counts, index.counts, 1)
    means, value_means, offsets, weights, unit = corrections or none
    kernel[(tiles, heads)](
        q, batch.keys, batch.values, out, lse,
        batch.tables, batch.lengths, batch.starts, batch.tiles.sequence, batch.tiles.number,
        *index, means, value_means, offsets, weights,
        scale, softcap, window, skip_below,
        tiles, heads, batch.tables.stride(0), weights.shape[-1],
        *q.stride()[:2], *out.stride()[:2], *batch.keys.stride()[:3],
        TILE=tile, BLOCK=page, DIM=dim, GROUP=heads // kv_heads, UNIT=unit, MEANS=_MEANS,
        CORRECT=corrections is not None, WINDOW=window > 0, CAP=softcap > 0, SKIP=skip_below > 0,
        num_warps=4 if dim * tile <= 64 * 128 else 8, num_stages=2,
    )  # fmt: skip
    return into


def implementation(device: torch.device, dtype: torch.dtype, dim: int, page: int, tile: int) -> str:
    """Which kernel attends: ``gluon``, on NVIDIA Hopper, or ``triton``.

    Windows, logit caps and skipped blocks are ``triton`` everywhere, and so is a cache whose heads do not lie side by
    side.
    """
    known = dim in (64, 128) and page == 64 and tile == 128 and dtype in (torch.bfloat16, torch.float16)
    return (
        "gluon" if known and generation(device) == 9 and gluon_module("block_sparse_prefill") is not None else "triton"
    )


def _check(q: torch.Tensor, batch: PagedBatch, index: BlockIndex, corrections: Corrections | None) -> None:
    check_cache(q, batch.keys, batch.values)
    check_rows(q, batch)
    page, kv_heads = batch.keys.shape[1:3]
    tile, tiles = batch.tiles.rows, batch.tiles.number.numel()
    if q.shape[2] > _MOST_DIM:
        raise ValueError(f"q: head dimension {q.shape[2]} is more than {_MOST_DIM}")
    if tile % page or tile & (tile - 1):
        raise ValueError(f"batch: pages of {page} and tiles of {tile} rows; a tile is a power of 2 of whole pages")
    if index.starts.shape != (kv_heads, tiles) or index.counts.shape != index.starts.shape:
        shapes = f"{tuple(index.starts.shape)} and {tuple(index.counts.shape)}"
        raise ValueError(f"index: starts and counts are {shapes}, not {(kv_heads, tiles)}")
    if not (index.starts.is_contiguous() and index.counts.is_contiguous() and index.blocks.is_contiguous()):
        raise ValueError("index: starts, counts and blocks must be contiguous")
    if not index.starts.dtype == index.counts.dtype == index.blocks.dtype == torch.int32:
        raise ValueError(f"index: starts, counts and blocks must be int32, not {[each.dtype for each in index]}")
    check_device("index", q, *index)
    if corrections is not None:
        _check_corrections(q, batch, corrections)
    if looked_at(q):
        batch.check(index)


def _check_corrections(q: torch.Tensor, batch: PagedBatch, corrections: Corrections) -> None:
    means, value_means, offsets, weights, unit = corrections
    page, kv_heads = batch.keys.shape[1:3]
    tile, tiles = batch.tiles.rows, batch.tiles.number.numel()
    if means.shape[1:] != (kv_heads, q.shape[2]) or value_means.shape != means.shape or means.dtype != q.dtype:
        raise ValueError(f"corrections: means are {tuple(means.shape)} {means.dtype}, not [units, Hkv, D] as q")
    if (value_means.dtype, offsets.dtype, weights.dtype) != (q.dtype, torch.int32, torch.float16):
        found = f"{value_means.dtype}, {offsets.dtype} and {weights.dtype}"
        raise ValueError(f"corrections: value_means, offsets and weights are of {found}")
    check_device("corrections", q, means, value_means, offsets, weights)
    if not all(each.is_contiguous() for each in (means, value_means, offsets, weights)):
        raise ValueError("corrections: means, value_means, offsets and weights must be contiguous")
    if offsets.shape != (batch.tables.shape[0],) or unit not in UNITS:
        raise ValueError(f"corrections: {offsets.numel()} offsets and units of {unit} blocks do not fit the batch")
    # Whole tiles of blocks at most lie before a tile.
    most = (batch.tables.shape[1] - 1) * page // tile * tile // page // unit
    if weights.shape[:2] != (kv_heads, tiles) or weights.shape[2] % WIDTH or weights.shape[2] < most:
        wanted = f"{(kv_heads, tiles)} and {most} or more in steps of {WIDTH}"
        raise ValueError(f"corrections: weights are {tuple(weights.shape)}, not {wanted}")


@triton.jit  # type: ignore[untyped-decorator]
def _scores(b_q, b_k, scale, softcap, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores in units of log 2: exp2 is what the hardware has."""
    b_s = tl.dot(b_q, b_k) * scale
    if CAP:
        # tanh, by the exponential.
        b_s = softcap * (1 - 2 / (1 + tl.exp2(b_s * (2 * 1.4426950408889634 / softcap))))
    return b_s * 1.4426950408889634


@triton.jit
def _attend(b_s, b_v, b_acc, b_m, b_l):  # type: ignore[no-untyped-def]
    """One step of the online softmax."""
    b_new = tl.maximum(b_m, tl.max(b_s, 1))
    # A row that has seen nothing yet.
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s - b_safe[:, None])
    b_old = tl.exp2(b_m - b_safe)
    b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v)
    return b_acc, b_new, b_l * b_old + tl.sum(b_p, 1)


# Of these, no value has a kernel of its own: each prompt has others.
@triton.jit(do_not_specialize=("tiles", "s_table", "widest"))  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    q, k, v, out, lse,
    tables, lengths, starts, tile_sequence, tile_number,
    block_starts, block_counts, blocks, means, value_means, offsets, weights,
    scale, softcap, window, skip_below,
    tiles, heads, s_table, widest,
    s_qt, s_qh, s_ot, s_oh, s_kp, s_kt, s_kh,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr,
    MEANS: tl.constexpr, CORRECT: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """One query tile of one query head; the arguments are those of :func:`block_sparse_prefill`, and strides."""
    # The last tiles take longest: first.
    i_t = tiles - 1 - tl.program_id(0)
    i_h = tl.program_id(1)
    i_kv = i_h // GROUP
    i_s = tl.load(tile_sequence + i_t).to(tl.int64)
    number = tl.load(tile_number + i_t)
    length = tl.load(lengths + i_s)
    first = tl.load(starts + i_s)
    prefix = length - (tl.load(starts + i_s + 1) - first)

    o_m = number * TILE + tl.arange(0, TILE)
    o_d = tl.arange(0, DIM)
    o_n = tl.arange(0, BLOCK)
    m_m = (o_m >= prefix) & (o_m < length)
    o_row = (first + o_m - prefix).to(tl.int64)
    # [TILE, DIM]
    b_q = tl.load(q + o_row[:, None] * s_qt + i_h * s_qh + o_d[None, :], mask=m_m[:, None], other=0.0)
    b_m = tl.full([TILE], float("-inf"), tl.float32)
    b_l = tl.zeros([TILE], tl.float32)
    b_acc = tl.zeros([TILE, DIM], tl.float32)
    p_table = tables + i_s * s_table
    o_in = o_n[:, None] * s_kt + o_d[None, :]

    before = number * TILE // BLOCK
    begin = tl.load(block_starts + i_kv * tiles + i_t)
    for i in range(begin, begin + tl.load(block_counts + i_kv * tiles + i_t)):
        i_b = tl.load(blocks + i)
        at = tl.load(p_table + i_b).to(tl.int64) * s_kp + i_kv * s_kh
        # [BLOCK, DIM]
        b_k = tl.load(k + at + o_in)
        b_s = _scores(b_q, tl.trans(b_k), scale, softcap, CAP)
        if WINDOW:
            o_key = i_b * BLOCK + o_n
            b_s = tl.where(o_m[:, None] - o_key[None, :] < window, b_s, float("-inf"))
        if SKIP:
            if tl.max(tl.max(b_s, 1) - b_m, 0) >= tl.log2(skip_below):
                b_acc, b_m, b_l = _attend(b_s, tl.load(v + at + o_in), b_acc, b_m, b_l)
        else:
            b_acc, b_m, b_l = _attend(b_s, tl.load(v + at + o_in), b_acc, b_m, b_l)

    if CORRECT:
        o_w = tl.arange(0, MEANS)
        p_weights = weights + (i_kv * tiles + i_t).to(tl.int64) * widest
        p_means = tl.load(offsets + i_s).to(tl.int64) * (heads // GROUP * DIM) + i_kv * DIM
        for i_u in range(0, before // UNIT, MEANS):
            b_w = tl.load(p_weights + i_u + o_w).to(tl.float32)
            if tl.max(b_w, 0) > float("-inf"):
                at = p_means + (i_u + o_w)[:, None] * (heads // GROUP * DIM) + o_d[None, :]
                # [MEANS, DIM]
                b_k = tl.load(means + at)
                b_v = tl.load(value_means + at)
                b_s = _scores(b_q, tl.trans(b_k), scale, softcap, CAP) + b_w[None, :]
                if WINDOW:
                    seen = o_m[:, None] - ((i_u + o_w) * UNIT * BLOCK)[None, :] < window
                    b_s = tl.where(seen, b_s, float("-inf"))
                b_acc, b_m, b_l = _attend(b_s, b_v, b_acc, b_m, b_l)

    for i_o in range(TILE // BLOCK):
        i_b = before + i_o
        if i_b * BLOCK < length:
            o_key = i_b * BLOCK + o_n
            # Slots past the end may hold anything, NaN included.
            m_n = o_key < length
            at = tl.load(p_table + i_b).to(tl.int64) * s_kp + i_kv * s_kh
            b_k = tl.load(k + at + o_in, mask=m_n[:, None], other=0.0)
            b_v = tl.load(v + at + o_in, mask=m_n[:, None], other=0.0)
            m_s = (o_key[None, :] <= o_m[:, None]) & m_n[None, :]
            if WINDOW:
                m_s = m_s & (o_m[:, None] - o_key[None, :] < window)
            b_s = tl.where(m_s, _scores(b_q, tl.trans(b_k), scale, softcap, CAP), float("-inf"))
            b_acc, b_m, b_l = _attend(b_s, b_v, b_acc, b_m, b_l)

    # Padding rows may see no key, in a window that lies past the end.
    b_l = tl.where(m_m, b_l, 1.0)
    b_out = b_acc / b_l[:, None]
    p_out = out + o_row[:, None] * s_ot + i_h * s_oh + o_d[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_m[:, None])
    tl.store(lse + o_row * heads + i_h, (b_m + tl.log2(b_l)) * 0.6931471805599453, mask=m_m)
