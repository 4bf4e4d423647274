"""What is served and asked, on a GPU and for a dry run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sparsity_quality.serving.shapes import LLAMA_8B, TINY


class Sparsity(NamedTuple):
    """A sparse tier: share of the blocks, tokens a decode step, and the length from which both hold."""

    share: float
    budget: int
    sparse_from: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        name: of the model's shape.
        config: of the model, which gets made-up weights.
        device: `cuda` or `cpu`.
        options: of every worker's command line.
        dense_options: of the dense one's, beside these.
        prompts: lengths at which the time to the first token is taken.
        repeats: of each.
        context: prompt of each sequence at which the time a token is taken.
        batches: sequences at once.
        new: tokens that each generates then.
        load: requests of the mixed load, of which every fifth is long.
        load_lengths: prompts of its short and of its long requests.
        rate: requests a second that arrive.
        short: prompts that all tiers attend densely.
        sparsity: of the sparse tiers.
    """

    name: str
    config: Mapping[str, Any]
    device: str
    options: tuple[str, ...]
    dense_options: tuple[str, ...]
    prompts: tuple[int, ...]
    repeats: int
    context: int
    batches: tuple[int, ...]
    new: int
    load: int
    load_lengths: tuple[int, int]
    rate: float
    short: int
    sparsity: Mapping[str, Sparsity]

    def tier_options(self, tier: str, folder: Path) -> tuple[str, ...]:
        """A tier's own part of the command line; its profile is written to ``folder``."""
        return self.dense_options if tier == "dense" else ("--profile", str(self.profile(tier, folder)))

    def profile(self, tier: str, folder: Path) -> Path:
        """Writes a sparse tier's profile: with made-up weights only a share of the blocks gives a known density."""
        own = self.sparsity[tier]
        document = {
            "schema": "sparsity.profile/v1", "name": f"serving-{tier}", "version": 1, "tier": tier,
            "block_size": 64, "sub_block": 16, "dense_layers": [],
            "prefill": {
                "sparse_from": own.sparse_from, "score": "sub_means", "rule": "top_k", "threshold": own.share,
                "query_tile": 128, "query_stride": 8, "mean_correction": True, "sink": 64, "window": 128,
                "dense_last_tiles": 0,
            },
            "decode": {
                "sparse_from": own.sparse_from, "budget": own.budget, "sink": 64, "recent": 64, "score": "sub_pages",
            },
        }  # fmt: skip
        path = folder / f"{tier}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


REAL = Plan(
    name="Llama-3.1-8B", config=LLAMA_8B, device="cuda",
    options=("--device", "cuda", "--load-format", "dummy", "--max-total-tokens", "400000", "--max-requests", "32",
             "--chunked-prefill-tokens", "16384"),
    dense_options=("--dense-backend", "fa4"),
    prompts=(1024, 4096, 8192, 32768, 65536, 102400), repeats=3, context=32768, batches=(1, 8, 12), new=64,
    load=120, load_lengths=(1024, 32768), rate=2.0, short=1024,
    sparsity={"moderate": Sparsity(0.12, 4096, 12288), "aggressive": Sparsity(0.06, 2048, 8192)},
)  # fmt: skip
DRY = replace(
    REAL, name="tiny", config=TINY, device="cpu", dense_options=(), prompts=(128, 700), repeats=1, context=512,
    options=("--load-format", "dummy", "--dtype", "float32", "--threads", "1", "--max-total-tokens", "8192",
             "--chunked-prefill-tokens", "512"),
    batches=(1, 2), new=8, load=6, load_lengths=(64, 512), rate=20.0, short=100,
    sparsity={"moderate": Sparsity(0.2, 256, 256), "aggressive": Sparsity(0.1, 192, 256)},
)  # fmt: skip
