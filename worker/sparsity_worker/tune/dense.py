"""Whose kernels serve the dense tier: ours where they were as fast as SGLang's wherever both were timed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import pick_dtype
from sparsity_worker.keys import DENSE_BACKEND
from sparsity_worker.nvml import device_name
from sparsity_worker.tune.crossover import Crossover, Heads, Timing, versions

# As slow as ours may be, against SGLang's, at any length and batch; and from which prompts on they must be faster.
_NEVER_SLOWER: Final = 1.02
_FASTER_FROM: Final = 8192
# Of a model's config.json: what its layers attend otherwise than by plain causal attention.
_OTHERWISE: Final = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "layer_types")


def ours_is_fastest(timings: Iterable[Timing]) -> bool:
    """Whether our kernels, attending everything, are never slower than SGLang's and faster on long prompts."""
    both = [(each, each.theirs) for each in timings if each.theirs is not None]
    long = [(each, theirs) for each, theirs in both if each.phase == "prefill" and each.length >= _FASTER_FROM]
    return (
        bool(long)
        and any(each.phase == "decode" for each, _ in both)
        and all(each.dense <= _NEVER_SLOWER * theirs for each, theirs in both)
        and all(each.dense < theirs for each, theirs in long)
    )


def dense_tier(config: WorkerConfig, facts: ModelFacts) -> tuple[WorkerConfig, str]:
    """A dense worker's options with the backend that was fastest on its device, and what is to be said of that.

    Whatever tier was tuned on the device, for layers of such heads, tells it. An option of the caller's stands.

    Raises:
        ConfigurationError: when what was measured cannot be read.
    """
    if config.sparse_tiers or config.device != "cuda" or config.dense_backend is not None:
        return config, ""
    if facts.latent or facts.index_topk or _attends_otherwise(config):
        return config, ""
    heads, dtype = Heads.read(config.model_path, config.tensor_parallel), pick_dtype(config.dtype, config.device)
    wanted = (device_name(), heads, dtype, versions())
    for path in sorted((config.state_folder / "tuned").glob("*.json")):
        found = Crossover.read(path)
        if (found.device, found.heads, found.dtype, found.versions) == wanted and ours_is_fastest(found.timings):
            told = f"attends by our kernels, the fastest as measured on {found.date} on {found.device}"
            return replace(config, dense_backend=DENSE_BACKEND), told
    return config, ""


def _attends_otherwise(config: WorkerConfig) -> bool:
    model = json.loads((config.model_path / "config.json").read_text(encoding="utf-8"))
    return any(model.get(name) for name in _OTHERWISE)
