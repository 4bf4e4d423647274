"""Options of one worker process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import ServerTls
from sparsity_serving.engines import ECHO, ENGINES, SGLANG

from sparsity_worker.coalescing import Coalescing
from sparsity_worker.folders import state_folder

TIERS = ("dense", "moderate", "aggressive")
# Of a model's config.json.
_OPTIONAL = ("index_topk", "kv_lora_rank", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is started with.

    Attributes:
        worker_id: unique in the fleet.
        tier: `dense`, `moderate` or `aggressive`.
        model_path: folder of a Hugging Face model with its tokenizer.json.
        listen: gRPC address, `host:port`; port 0 takes a free one.
        profile: name or path of the sparsity profile; unused by the dense tier.
        max_total_tokens: KV cache, tokens; None takes a small one on the CPU, and on a GPU what the memory holds.
        max_requests: requests accepted at once.
        chunked_prefill_tokens: prompt tokens prefilled at once.
        dtype: `auto`, `bfloat16` or `float32`; auto takes bfloat16 where the CPU multiplies it natively.
        threads: compute threads.
        overlap: whether a sparse tier on a GPU prepares a step while the last one runs, as the dense tier does.
        state_folder: where compiled kernels are kept, and what `sparsity worker tune` found.
        lease_key_file: the key that routers sign leases with; None takes SPARSITY_LEASE_KEY.
        require_lease: whether a request without a router's lease is refused.
        coalescing: when the messages of a fast stream are joined.
        tls: what the worker proves itself with; None is plain text.
        metrics_listen: `host:port` of the Prometheus endpoint; None serves none.
        health_listen: `host:port` of the plaintext health service for probes; None serves none.
        drain_seconds: time that streams in flight get at shutdown.
        measured_share: share of the requests whose coverage is measured on some rows, too.
        reasoning_markers: the tokens around a reasoning span, opening and closing.
        mem_fraction: share of the memory that SGLang may plan with; None takes the device's default. The KV cache is
            at most max_total_tokens.
        device: `cpu` or `cuda`.
        tensor_parallel: devices, or on the CPU processes, that share each layer's heads.
        load_format: how SGLang loads the weights, such as `auto` or `dummy`, which makes them up.
        dense_backend: SGLang's attention backend of the dense tier; None lets it choose, or takes the CPU's.
        engine: `sglang`, or `echo`, which runs no model and answers with the prompt.
    """

    worker_id: str
    tier: str
    model_path: Path
    listen: str = "127.0.0.1:0"
    profile: str | None = None
    max_total_tokens: int | None = None
    max_requests: int = 32
    chunked_prefill_tokens: int = 8192
    dtype: str = "auto"
    threads: int | None = None
    mem_fraction: float | None = None
    device: str = "cpu"
    tensor_parallel: int = 1
    load_format: str = "auto"
    dense_backend: str | None = None
    overlap: bool = True
    state_folder: Path = field(default_factory=state_folder)
    lease_key_file: Path | None = None
    require_lease: bool = False
    coalescing: Coalescing = field(default_factory=Coalescing)
    tls: ServerTls | None = None
    metrics_listen: str | None = None
    health_listen: str | None = None
    drain_seconds: float = 30.0
    measured_share: float = 0.05
    reasoning_markers: tuple[str, str] = ("<think>", "</think>")
    engine: str = SGLANG

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ConfigurationError(f"--tier: must be one of {', '.join(TIERS)}, not {self.tier!r}")
        if self.engine not in ENGINES:
            raise ConfigurationError(f"--engine: must be one of {', '.join(ENGINES)}, not {self.engine!r}")
        if self.engine == ECHO and self.profile:
            raise ConfigurationError("--profile: an echo attends nothing, so it takes none")
        if self.tier != "dense" and not self.profile and self.engine != ECHO:
            raise ConfigurationError(f"--profile: the {self.tier} tier needs one")
        if self.device not in ("cpu", "cuda"):
            raise ConfigurationError(f"--device: must be cpu or cuda, not {self.device!r}")
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise ConfigurationError(f"--dtype: must be auto, bfloat16 or float32, not {self.dtype!r}")
        for name in ("max_total_tokens", "max_requests", "chunked_prefill_tokens", "tensor_parallel"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')}: must be at least 1")
        if not 0 <= self.measured_share <= 1:
            raise ConfigurationError("--measured-share: must lie in [0, 1]")
        if self.drain_seconds < 0:
            raise ConfigurationError("--drain-seconds: must be from 0")
        for name in ("config.json", "tokenizer.json"):
            if not (self.model_path / name).is_file():
                raise ConfigurationError(
                    f"--model: {self.model_path} has no {name}; give the folder of a Hugging Face model"
                    " (`sparsity up` without --model fetches the default one)"
                )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What requests are checked against.

    Attributes:
        name: the model folder's name.
        context_length: prompt plus completion, tokens.
        vocabulary_size: token ids lie below it.
        index_topk: tokens that the model's own indexer picks for each query (DeepSeek sparse attention); 0 without one.
        latent: whether its KV cache holds one latent vector a token for all heads (MLA).
        heads: query heads; 0 where its config does not say.
    """

    name: str
    context_length: int
    vocabulary_size: int
    index_topk: int = 0
    latent: bool = False
    heads: int = 0

    @classmethod
    def read(cls, model_path: Path) -> ModelFacts:
        """Reads the model's config.json.

        Raises:
            ConfigurationError: when it is not readable or lacks a field.
        """
        path = model_path / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            context, vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
            picks, latent, heads = (int(config.get(key) or 0) for key in _OPTIONAL)
            return cls(model_path.name, context, vocabulary, picks, bool(latent), heads)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"--model: {path}: {type(error).__name__}: {error}") from error

    def check_ranks(self, ranks: int) -> None:
        """Whether so many ranks can share the heads.

        Raises:
            ConfigurationError: when they cannot.
        """
        if self.heads % ranks:
            raise ConfigurationError(
                f"--tensor-parallel: {self.name} has {self.heads} heads, which {ranks} cannot share"
            )
