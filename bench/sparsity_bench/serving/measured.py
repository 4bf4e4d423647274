"""One tier's figures, and the file that they are written to as they come."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2, worker_pb2

from sparsity_bench.serving.loads.repeats import Repeats

_SUFFIX = ".measured.json"


@dataclass(slots=True)
class Measured:
    """One tier's figures.

    Attributes:
        tier: that served.
        own: what the worker says of itself.
        start: seconds until it served, its proof included.
        head: versions, device and date.
        answers: to short prompts, which every tier attends densely.
        repeats: how many prompts were answered alike each time; None where that was not asked.
        faults: what is wrong with the answers.
        compiled: kernels that were compiled while it served.
        first: seconds to the first token, by prompt length.
        density: of prefill, by prompt length.
        sparse_calls: kernel calls that pruned something, by prompt length.
        per_token: seconds a token, by batch.
        decode_density: by batch.
        throughput: tokens a second of prompts and answers under the mixed load; None before it ran.
        load_first: seconds to the first token of its short requests.
        tiers_throughput: the same under the load of three tiers.
        tiers_first: seconds to the first token of its requests, by the tier that they want.
        joules: energy of a thousand tokens of a prompt, by its length, and of the loads, by their names.
        left_out: for want of time.
    """

    tier: str
    own: dict[str, Any]
    start: float = 0.0
    head: dict[str, Any] = field(default_factory=dict)
    answers: list[list[int]] = field(default_factory=list)
    repeats: Repeats | None = None
    faults: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    first: dict[int, list[float]] = field(default_factory=dict)
    density: dict[int, float] = field(default_factory=dict)
    sparse_calls: dict[int, int] = field(default_factory=dict)
    per_token: dict[str, list[float]] = field(default_factory=dict)
    decode_density: dict[str, float] = field(default_factory=dict)
    throughput: float | None = None
    load_first: list[float] = field(default_factory=list)
    tiers_throughput: float | None = None
    tiers_first: dict[str, list[float]] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes it as it stands, beside those of other tiers."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"serving-{self.tier}{_SUFFIX}").write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_all(folder: Path) -> dict[str, Measured]:
    """Of every tier that has been written, by its name."""
    found = {}
    for path in sorted(folder.rglob(f"serving-*{_SUFFIX}")):
        document = json.loads(path.read_text())
        for name in ("first", "density", "sparse_calls"):
            document[name] = {int(length): value for length, value in document[name].items()}
        if document.get("repeats") is not None:
            document["repeats"] = Repeats(*document["repeats"])
        found[document["tier"]] = Measured(**document)
    return found


def described(own: worker_pb2.GetCapabilitiesResponse, tier: str | None = None) -> dict[str, Any]:
    """What is kept of a worker's capabilities, of one of its tiers."""
    engine = own.engine
    told: worker_pb2.GetCapabilitiesResponse | worker_pb2.TierCapabilities = own
    if tier is not None:
        told = next(each for each in own.tiers if each.tier == inference_pb2.Tier.Value(f"TIER_{tier.upper()}"))
    return {
        "backend": own.backend, "kernels": engine.kernels, "cuda_graphs": engine.cuda_graphs,
        "sparse_calls": told.proof.sparse_kernel_calls, "calls": told.proof.kernel_calls,
        "vocabulary": own.vocabulary_size, "kv_tokens": own.kv_capacity_tokens, "kv_bytes": engine.kv_bytes,
        "summary_bytes": engine.summary_bytes, "sparse_from": told.sparse_from, "crossover": engine.crossover,
    }  # fmt: skip
