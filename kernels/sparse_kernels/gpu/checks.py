"""What every kernel over a paged cache asks of its tensors."""

from __future__ import annotations

from functools import cache

import torch
import triton

_LEAST_ROWS = 16


def check_cache(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Checks queries ``[rows, Hq, D]`` against a cache ``[pages, page, Hkv, D]``.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    heads, dim = q.shape[1:]
    page, kv_heads, key_dim = keys.shape[1:]
    if dim != key_dim:
        raise ValueError(f"q: head dimension {dim} must be that of the keys, {key_dim}, and a power of 2 from 16")
    if heads % kv_heads:
        raise ValueError(f"q: {heads} query heads are not a multiple of {kv_heads} KV heads")
    check_page(page, dim)
    if q.stride(2) != 1 or keys.stride(3) != 1 or keys.stride() != values.stride():
        raise ValueError("q, keys, values: the head dimension must be contiguous, keys and values laid out alike")


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
