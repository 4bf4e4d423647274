"""`python -m sparsity_worker.tune.ahead SHARE OF`: compiles a share of a tier's kernels into a cache.

A worker on a GPU starts some of these beside its engine: while SGLang loads the weights, the compilers are done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import pick_dtype
from sparsity_worker.profiles.profile import Profile
from sparsity_worker.profiles.served_tiers import block_profiles, tiers_of, to_config
from sparsity_worker.profiles.tier_profile import TierProfile
from sparsity_worker.tune.crossover import Heads, versions

log = logging.getLogger("sparsity.worker")
_PROCESSES: Final = 4


@contextmanager
def compiled_ahead(config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> Iterator[None]:
    """Compiles the kernels of the tiers meanwhile, unless they are in the cache; what is not done by the end is left.

    The environment must be prepared: it says where the cache is.
    """
    cache = os.environ.get("TRITON_CACHE_DIR")
    plain = [profile for profile in profiles.values() if isinstance(profile, Profile)]
    if config.device != "cuda" or not plain or cache is None:
        yield
        return
    asked = _document(config, facts, profiles)
    known = json.dumps([asked, versions()], sort_keys=True).encode()
    done = Path(cache) / f"compiled-{hashlib.sha256(known).hexdigest()[:16]}"
    if done.exists():
        yield
        return
    count = min(_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
    running = [_start(share, count, asked) for share in range(count)]
    try:
        yield
    finally:
        codes = [process.poll() for process in running]
        for process in running:
            process.kill()
            process.wait()
    if any(codes):
        log.warning("kernels could not be compiled ahead, which makes the start longer; see the traceback above")
    elif None not in codes:
        done.touch()


def _start(share: int, count: int, asked: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sparsity_worker.tune.ahead", f"{share}", f"{count}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    return process


def _document(config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> dict[str, Any]:
    heads = Heads.read(config.model_path, config.tensor_parallel)
    return {
        "tiers": to_config(config.tiers, profiles), "heads": heads, "context": facts.context_length,
        "most": config.max_requests, "dtype": pick_dtype(config.dtype, config.device),
    }  # fmt: skip


def compile_share(asked: dict[str, Any], share: int, of: int, device: str = "cuda") -> None:
    """Compiles what :func:`sparsity_worker.plugin.warm_up.warm_up` would run, without running it."""
    import torch
    from sparse_kernels import PageSummaries

    from sparsity_worker.plugin.accounts.ledger import Ledger
    from sparsity_worker.plugin.compiling import compiling_only
    from sparsity_worker.plugin.triton_attention import TritonAttention
    from sparsity_worker.plugin.warm_up import Served, warm_up

    heads, dtype = Heads(*asked["heads"]), getattr(torch, asked["dtype"])
    told: Any = SimpleNamespace(hf_config=SimpleNamespace(**asked["tiers"]))
    named = {number for profile in block_profiles(told) for number in (*profile.dense_layers, *profile.layers)}
    # One layer of each kind: attended densely, or by a budget of decode of its own or of all.
    numbers = (*named, max(named, default=0) + 1)
    tiers = tiers_of(told, numbers[-1] + 1).values()
    profiles = [profile.for_heads(range(heads.kv_heads)) for profile in tiers]
    kinds = {tuple(profile.decode_at(number) for profile in profiles): number for number in numbers}
    profile = profiles[0]
    # Kernels know the strides of the cache, not its size; every token lies in the first page.
    cache = torch.zeros(2, profile.block_size, heads.kv_heads, heads.dim, dtype=dtype, device=device)
    slots = torch.zeros(1, asked["context"], dtype=torch.int32, device=device)
    shape = (2, profile.block_size, heads.kv_heads, heads.dim, profile.sub_block)
    summaries = {number: PageSummaries(*shape, cache.device, dtype) for number in kinds.values()}
    attention = TritonAttention(profiles, summaries, slots, Ledger(max(summaries) + 1, capacity=1), heads.heads)
    with compiling_only(share, of):
        warm_up(
            attention, profiles, lambda _: (cache, cache),
            Served(heads.heads, heads.dim, asked["context"], asked["most"]),
        )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Runs it, on the document that comes on the standard input."""
    share, of = map(int, arguments)
    compile_share(json.load(sys.stdin), share, of)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
