"""Triton kernels; each has its definition in :mod:`sparse_kernels.reference`."""

from typing import Any

from sparse_kernels.gpu import block_sparse_prefill as _block_sparse_prefill


def kernels() -> dict[str, Any]:
    """Every Triton kernel by its name, for tools that compile them."""
    return {"block_sparse_prefill": _block_sparse_prefill.kernel}
