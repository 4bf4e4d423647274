"""What SGLang is told about the device that computes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsity_worker.config import TOKENS_CPU, WorkerConfig
from sparsity_worker.keys import BACKEND

log = logging.getLogger("sparsity.worker")
DENSE_BACKEND_CPU = "torch_native"
_MEMORY_CPU, _MEMORY_SPARSE_CUDA = 0.3, 0.8


def prepare_environment(
    device: str, threads: int | None, ranks: int = 1, kept: Path | None = None, nodes: int = 1
) -> None:
    """Sets what SGLang and Triton read from the environment; before its first import, since its children inherit it.

    Args:
        device: `cpu` or `cuda`.
        threads: of computation; None leaves the choice to torch.
        ranks: that share each layer's heads.
        kept: folder of what outlives the worker; compiled kernels go there unless TRITON_CACHE_DIR says otherwise.
        nodes: that have as many of the ranks each.
    """
    if device == "cuda" and kept is not None:
        # Compiling them takes longer than loading a small model; Triton itself tells versions and devices apart.
        os.environ.setdefault("TRITON_CACHE_DIR", str(kept / "kernels"))
        log.info("compiled kernels are kept in %s", os.environ["TRITON_CACHE_DIR"])
    if device == "cpu":
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        if ranks > 1:
            os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(_shares(ranks // nodes)))
            # It would take up NCCL, which comes with torch, and fail without a GPU; the ranks talk by Gloo.
            os.environ.setdefault("SGLANG_NCCL_SO_PATH", "none-without-a-gpu")
    # Where other ranks serve, an engine would not come back until they are gone.
    os.environ["SGLANG_BLOCK_NONZERO_RANK_CHILDREN"] = "0"
    os.environ["SGLANG_PLUGINS"] = BACKEND
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # While a grammar compiles, each step of everybody waits for it so long; and it may take so many steps.
    os.environ.setdefault("SGLANG_GRAMMAR_POLL_INTERVAL", "0.0005")
    os.environ.setdefault("SGLANG_GRAMMAR_MAX_POLL_ITERATIONS", "20000")
    # Its spans of a request's stages; higher levels add one for every step.
    os.environ.setdefault("SGLANG_TRACE_LEVEL", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A token's probability is the model's, whatever temperature it was sampled at.
    os.environ.setdefault("SGLANG_RETURN_ORIGINAL_LOGPROB", "1")
    # A forward pass allocates and frees the same large buffers again and again: keeping them mapped saves the page
    # faults, a tenth of the time to first token.
    for name, value in (("MMAP_THRESHOLD", 2**30), ("TRIM_THRESHOLD", 2**30), ("TOP_PAD", 2**26)):
        os.environ.setdefault(f"MALLOC_{name}_", str(value))
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _shares(ranks: int) -> Iterator[str]:
    """Cores of each rank of a node, as a list with commas; ranks share them where there are fewer cores than ranks."""
    cores = sorted(os.sched_getaffinity(0))
    for rank in range(ranks):
        first = rank * len(cores) // ranks
        yield ",".join(map(str, cores[first : max((rank + 1) * len(cores) // ranks, first + 1)]))


def pick_dtype(wanted: str, device: str = "cpu") -> str:
    """`auto` becomes bfloat16 where the device multiplies it in hardware, else float32."""
    import torch

    if wanted != "auto":
        return wanted
    native = device == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def _cpu(config: WorkerConfig, backend: str | None) -> dict[str, Any]:
    return {
        "attention_backend": backend or config.dense_backend or DENSE_BACKEND_CPU,
        "max_total_tokens": config.max_total_tokens or TOKENS_CPU,
        "mem_fraction_static": config.mem_fraction or _MEMORY_CPU,
        "disable_overlap_schedule": True,
        "sampling_backend": "pytorch",
    }


def _cuda(config: WorkerConfig, backend: str | None) -> dict[str, Any]:
    """The dense tier takes what SGLang finds best."""
    tokens = {"max_total_tokens": config.max_total_tokens}
    if backend != BACKEND:
        chosen = {"mem_fraction_static": config.mem_fraction, "attention_backend": backend or config.dense_backend}
        return tokens | {name: value for name, value in chosen.items() if value}
    return {
        **tokens,
        "attention_backend": backend,
        # Selection needs buffers that SGLang does not know of.
        "mem_fraction_static": config.mem_fraction or _MEMORY_SPARSE_CUDA,
        "disable_overlap_schedule": not config.overlap,
    }


# What differs by device: of the worker's options, and the backend of its profile, if it has one.
DEVICES: Mapping[str, Callable[[WorkerConfig, str | None], dict[str, Any]]] = {"cpu": _cpu, "cuda": _cuda}
