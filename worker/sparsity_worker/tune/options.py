"""Options of `sparsity worker tune`: a worker's own, but for the one profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsity_serving.options.declaration import check_bounds, option, same

from sparsity_worker.config import WorkerConfig


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """What is measured, and where it is kept: as the workers will be started that are to heed it."""

    model_path: Path = same(WorkerConfig, "model_path")
    profile: str = option("name or .yaml path of the sparsity profile")
    tensor_parallel: int = same(WorkerConfig, "tensor_parallel")
    chunked_prefill_tokens: int = same(WorkerConfig, "chunked_prefill_tokens")
    state_folder: Path = same(WorkerConfig, "state_folder")

    def __post_init__(self) -> None:
        check_bounds(self)
