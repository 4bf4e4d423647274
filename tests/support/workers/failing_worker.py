"""`python -m support.workers.failing_worker ...` is `python -m sparsity_worker ...` whose attention fails on purpose.

The processes that SGLang starts are forks of this one, or import its main module: either has what stands here.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import sparse_kernels
import torch
from sparsity_worker.__main__ import main

RAISES, NUMBERLESS = 777, 555
"""Tokens of a sequence whose step of decode raises, and of a prompt whose attention gives what is no number."""
REASON: Final = "no such page"
_decode, _prefill = sparse_kernels.sparse_paged_decode_cpu, sparse_kernels.block_sparse_prefill_cpu


def _failing_decode(q: Any, sequence: Any, *args: Any, **more: Any) -> Any:
    if sequence.length == RAISES:
        raise IndexError(REASON)
    return _decode(q, sequence, *args, **more)


def _failing_prefill(*args: Any, total: int, **more: Any) -> Any:
    out, stats = _prefill(*args, total=total, **more)
    if total == NUMBERLESS:
        out[-1] = torch.nan
    return out, stats


sparse_kernels.sparse_paged_decode_cpu = _failing_decode
sparse_kernels.block_sparse_prefill_cpu = _failing_prefill

if __name__ == "__main__":
    sys.exit(main())
