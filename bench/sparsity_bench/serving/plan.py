"""What is served and asked, on a GPU and for a dry run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from sparsity_bench.serving.shapes import LLAMA_8B, LLAMA_70B, TINY


class Sparsity(NamedTuple):
    """A sparse tier: share of the blocks, tokens a decode step, and the length from which both hold."""

    share: float
    budget: int
    sparse_from: int


class Decode(NamedTuple):
    """Sequences that decode at once, and the prompt of each."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.context}"


class Goals(NamedTuple):
    """Times dense that sparse tiers are to reach; elsewhere they are never to be slower.

    Attributes:
        first: to the first token, by tier and length of the prompt.
        per_token: a token, by tier and batch.
        throughput: of the mixed load, by tier.
    """

    first: Mapping[str, Mapping[int, float]] = MappingProxyType({})
    per_token: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    throughput: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        name: of the model's shape.
        config: of the model, which gets made-up weights.
        device: `cuda` or `cpu`.
        options: of every worker's command line.
        dense_backends: SGLang's, of which the first that starts is the baseline; none takes SGLang's own choice.
        prompts: lengths at which the time to the first token is taken.
        repeats: of every figure, of which the median is shown; short prompts have more.
        decodes: batches at which the time a token is taken.
        new: tokens that each generates then.
        load: requests of the mixed load, of which every fifth is long; 0 for none.
        load_lengths: prompts of its short and of its long requests.
        rate: requests a second that arrive: more than the dense tier can take.
        tiers_load: requests of the load of three tiers, a third each; 0 for none.
        tiers_lengths: prompts of each tier's requests, in turn.
        tiers_rate: requests a second that arrive: more than the dense tier can take.
        short: prompts that all tiers attend densely.
        answers: of these, compared among tiers.
        repeated: lengths of prompts that must be answered alike every time; none leaves that out.
        interrupted: a prompt of several chunks, whose reading is broken off and begun again.
        seconds: that one tier may take from when it serves; what is left then is left out.
        sparsity: of the sparse tiers.
        goals: that its sparse tiers are to reach.
        ranks: devices, or processes on a CPU, that share each layer's heads.
    """

    name: str
    config: Mapping[str, Any]
    device: str
    options: tuple[str, ...]
    dense_backends: tuple[str, ...]
    prompts: tuple[int, ...]
    repeats: int
    decodes: tuple[Decode, ...]
    new: int
    load: int
    load_lengths: tuple[int, int]
    rate: float
    tiers_load: int
    tiers_lengths: tuple[int, ...]
    tiers_rate: float
    short: int
    answers: int
    repeated: tuple[int, ...]
    interrupted: int
    seconds: float
    sparsity: Mapping[str, Sparsity]
    goals: Goals
    ranks: int = 1

    def by_ranks(self, ranks: int) -> Plan:
        """The same, where several ranks share each layer's heads."""
        options = self.options[:-2] if self.ranks > 1 else self.options
        return replace(self, ranks=ranks, options=(*options, "--tensor-parallel", str(ranks)))

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


# What the model takes, less room for an answer, in whole tiles.
_LONGEST = 130_944
# Of what is to be faster, by however little.
_FASTER = 1.001
REAL = Plan(
    name="Llama-3.1-8B", config=LLAMA_8B, device="cuda",
    options=("--device", "cuda", "--load-format", "dummy", "--max-total-tokens", "440000", "--max-requests", "32",
             "--chunked-prefill-tokens", "16384"),
    dense_backends=("fa4", "flashinfer", "fa3", "triton"),
    prompts=(1024, 4096, 8192, 32768, 65536, 102400, _LONGEST), repeats=3,
    decodes=(Decode(1, 32768), Decode(8, 32768), Decode(12, 32768), Decode(4, 102400),
             *(Decode(batch, context) for context in (4096, 8192) for batch in (1, 8))), new=128,
    load=60, load_lengths=(1024, 32768), rate=8.0, tiers_load=48,
    tiers_lengths=(1024, 4096, 16384, 65536), tiers_rate=4.0, short=1024, answers=50,
    repeated=(4097, 4160, 4161, 16385, 16448, 16449), interrupted=49_217, seconds=400.0,
    sparsity={"moderate": Sparsity(0.08, 4096, 8192), "aggressive": Sparsity(0.04, 2048, 8192)},
    goals=Goals(
        {"aggressive": {32768: 1.4, 65536: 1.95, 102400: 2.45}, "moderate": {32768: 1.3, 65536: 1.8, 102400: 2.2},
         "dense-ours": dict.fromkeys((32768, 65536, 102400, _LONGEST), _FASTER)},
        {"aggressive": {"8 x 32768": 1.7, "12 x 32768": 1.9, "4 x 102400": 2.0}}, {"aggressive": 1.4},
    ),
)  # fmt: skip
QUICK = replace(
    REAL, prompts=(1024, 8192, 32768, 102400), decodes=(Decode(1, 32768), Decode(8, 32768)), load=30, tiers_load=24,
    answers=20, repeated=(4097, 4161, 16449), seconds=110.0,
)  # fmt: skip
# In a KV cache that two devices have room for, too, beside the weights.
LARGE = replace(
    REAL, name="Llama-3.3-70B", config=LLAMA_70B,
    options=("--device", "cuda", "--load-format", "dummy", "--max-total-tokens", "270000", "--max-requests", "32",
             "--chunked-prefill-tokens", "16384", "--mem-fraction", "0.88"),
    prompts=(8192, 32768, 65536, _LONGEST), repeats=2, decodes=(Decode(1, 32768), Decode(8, 32768)), new=64, load=0,
    tiers_load=24, tiers_rate=2.0, answers=20, repeated=(4097, 16449), interrupted=33_000,
    goals=Goals({"aggressive": {_LONGEST: 2.2}}, {"aggressive": {"32 x 32768": 1.8}}),
).by_ranks(4)  # fmt: skip
DRY = replace(
    REAL, name="tiny", config=TINY, device="cpu", dense_backends=(), prompts=(128, 700), repeats=2,
    options=("--load-format", "dummy", "--dtype", "float32", "--threads", "1", "--max-total-tokens", "8192",
             "--chunked-prefill-tokens", "512"),
    decodes=(Decode(1, 512), Decode(2, 512)), new=8, load=6, load_lengths=(64, 512), rate=20.0,
    tiers_load=6, tiers_lengths=(64, 512), tiers_rate=20.0, short=100, answers=10,
    repeated=(257, 320, 321), interrupted=1601,
    sparsity={"moderate": Sparsity(0.2, 256, 256), "aggressive": Sparsity(0.1, 192, 256)},
)  # fmt: skip
