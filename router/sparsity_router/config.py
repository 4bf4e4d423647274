"""Options of one router process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsity.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What a router is started with.

    Attributes:
        model_path: folder with the served model's tokenizer.json and config.json.
        workers: gRPC targets of the workers.
        redis_url: the policy store.
        listen: gRPC address, `host:port`; port 0 takes a free one.
        band_set: the set of shipped policies that an empty store is seeded with; None seeds nothing.
        policy_ttl: age past which policies are stale and everything goes dense, seconds.
        max_prompt_bytes: longer prompts are refused before they are tokenized.
        worker_timeout: silence after which a worker counts as gone, seconds.
        drain_seconds: time that streams in flight get at shutdown.
    """

    model_path: Path
    workers: tuple[str, ...]
    redis_url: str
    listen: str = "127.0.0.1:7000"
    band_set: str | None = "standard"
    policy_ttl: float = 300.0
    max_prompt_bytes: int = 4 * 2**20
    worker_timeout: float = 3.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.workers:
            raise ConfigurationError("--worker: give the address of at least one worker")
        for name in ("tokenizer.json", "config.json"):
            if not (self.model_path / name).is_file():
                problem = (
                    f"--model: {self.model_path} has no {name}; give the folder of the model that the workers serve"
                )
                raise ConfigurationError(problem)
        if self.policy_ttl <= 0:
            raise ConfigurationError("--policy-ttl: must be more than 0 seconds")
