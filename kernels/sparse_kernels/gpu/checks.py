"""What every kernel over a paged cache asks of its tensors."""

from __future__ import annotations

from functools import cache

import torch
import triton

from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.page_summaries import PageSummaries

_LEAST_ROWS = 16
# Tensors of the batch that was checked last, and a device: a model's layers have the same ones.
_checked: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.device] | None = None


def check_cache(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Checks queries ``[rows, Hq, D]`` against a cache ``[pages, page, Hkv, D]``.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    heads, dim = q.shape[1:]
    page, kv_heads, key_dim = keys.shape[1:]
    if q.dtype != keys.dtype or q.dtype != values.dtype:
        raise ValueError(f"q: of {q.dtype}, the cache of {keys.dtype} and {values.dtype}")
    check_device("keys, values", q, keys, values)
    # Their strides are alike, see below.
    if keys.numel() != values.numel():
        raise ValueError(f"values: are of {tuple(values.shape)}, keys of {tuple(keys.shape)}")
    if dim != key_dim:
        raise ValueError(f"q: head dimension {dim} must be that of the keys, {key_dim}, and a power of 2 from 16")
    if heads % kv_heads:
        raise ValueError(f"q: {heads} query heads are not a multiple of {kv_heads} KV heads")
    check_page(page, dim)
    if q.stride(2) != 1 or keys.stride(3) != 1 or keys.stride() != values.stride():
        raise ValueError("q, keys, values: the head dimension must be contiguous, keys and values laid out alike")


def check_rows(q: torch.Tensor, batch: PagedBatch) -> None:
    """Checks queries ``[rows, Hq, D]`` and where they lie against a batch of prefill.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    global _checked
    tables, lengths, starts, tiles = batch[2:]
    if q.shape[0] < tiles.queries:
        raise ValueError(f"q: {q.shape[0]} rows, the batch has {tiles.queries}")
    old, device = _checked, q.device
    # Written out: this is before every launch.
    if (
        old is not None
        and (old[0] is tables and old[1] is lengths and old[2] is starts)
        and (old[3] is tiles.sequence and old[4] is tiles.number and old[5] == device)
    ):
        return
    sequences = tables.shape[0]
    if lengths.shape != (sequences,) or starts.shape != (sequences + 1,) or tiles.sequence.shape != tiles.number.shape:
        raise ValueError(f"batch: lengths, starts and tiles are not those of {sequences} sequences")
    parts = tables, lengths, starts, tiles.sequence, tiles.number
    for part in parts:
        if part.dtype != torch.int32:
            raise ValueError(f"batch: tables, lengths, starts and tiles must be int32, not {part.dtype}")
    if tables.stride(1) != 1 or not all(part.is_contiguous() for part in parts[1:]):
        raise ValueError("batch: rows of tables, lengths, starts and tiles must be contiguous")
    check_device("batch", q, *parts)
    _checked = (*parts, device)


def check_summaries(q: torch.Tensor, keys: torch.Tensor, summaries: PageSummaries) -> None:
    """Checks that summaries are of a cache ``[pages, page, Hkv, D]``, and can be multiplied with queries over it.

    Raises:
        ValueError: naming the argument.
    """
    pages, page, kv_heads, dim = keys.shape
    if summaries.mean.shape != (pages, kv_heads, dim) or summaries.page_size != page:
        raise ValueError(f"summaries: are of {tuple(summaries.mean.shape)}, the cache is of {(pages, kv_heads, dim)}")
    subs = page // summaries.sub_page
    if summaries.sub_mean.shape != (pages, subs, kv_heads, dim):
        raise ValueError(f"summaries: sub_mean is of {tuple(summaries.sub_mean.shape)}, not of {subs} sub-pages a page")
    if summaries.mean.dtype != q.dtype or summaries.sub_mean.dtype != q.dtype:
        raise ValueError(f"summaries: of {summaries.mean.dtype}, the queries are of {q.dtype}")
    check_device("summaries", q, summaries.mean)
    held = (summaries.sub_mean, summaries.sub_count, summaries.mean, summaries.value_mean, summaries.spread)
    if not all(each.is_contiguous() for each in held):
        raise ValueError("summaries: must be contiguous")


def check_device(name: str, q: torch.Tensor, *others: torch.Tensor) -> None:
    """Checks that tensors lie where the queries do.

    Raises:
        ValueError: naming the argument.
    """
    device = q.device
    for other in others:
        if other.device != device:
            raise ValueError(f"{name}: on {other.device}, the queries are on {device}")


def looked_at(q: torch.Tensor) -> bool:
    """Whether what a batch holds is looked at before each launch: on a CPU, where Triton's interpreter reads it."""
    return q.is_cpu and bool(triton.knobs.runtime.interpret)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, which as many persistent programs fill."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def generation(device: torch.device) -> int:
    """Of an NVIDIA GPU, its major compute capability: 9 is Hopper; 0 of other devices."""
    return 0 if device.type != "cuda" or torch.version.hip else int(torch.cuda.get_device_capability(device)[0])


def padded_rows(rows: int) -> int:
    """Rows of a tensor-core product that holds so many."""
    return max(_LEAST_ROWS, int(triton.next_power_of_2(rows)))


def check_page(page: int, dim: int) -> None:
    """Checks the shape of a page of one head.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if page < 16 or page & (page - 1):
        raise ValueError(f"keys: pages of {page} tokens, not a power of 2 from 16")
    check_dim("keys", dim)


def check_dim(name: str, dim: int) -> None:
    """Checks a dimension that tensor cores multiply over.

    Raises:
        ValueError: naming the argument.
    """
    if dim < 16 or dim & (dim - 1):
        raise ValueError(f"{name}: dimension {dim} must be a power of 2 from 16")
