"""Options of one worker process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import DENSE, TIERS
from sparsity_rpc.tls import ServerTls
from sparsity_serving.engines import ECHO, ENGINES, SGLANG
from sparsity_serving.fields.defaults import Defaults, ends_of
from sparsity_serving.options.declaration import Option, check_bounds, group, option

from sparsity_worker.coalescing import Coalescing
from sparsity_worker.folders import state_folder
from sparsity_worker.nodes import Nodes

PREFIX = "SPARSITY_WORKER"
TOKENS_CPU = 20_480
# Of a model's config.json.
_OPTIONAL = ("index_topk", "kv_lora_rank", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is started with: every option of `python -m sparsity_worker`, stated here only."""

    worker_id: str = option("unique among all workers that check leases by the same keys, whatever their models")
    tiers: tuple[str, ...] = option(
        f"how much attention its requests may get: {', '.join(TIERS)}, or several of these with commas between"
    )
    model_path: Path = option("folder of a Hugging Face model with its tokenizer.json", name="model")
    listen: str = option("gRPC address, host:port; port 0 takes a free one", "127.0.0.1:0")
    profiles: tuple[str, ...] = option(
        "name or .yaml path of a sparsity profile; each sparse tier needs one, and it says whose it is",
        (),
        name="profile",
    )
    served_model_name: str | None = option(
        "what it says that it serves, by which routers tell their models; the folder's name without it", None
    )
    max_total_tokens: int | None = option(
        f"KV cache, tokens; {TOKENS_CPU} on a CPU without it, and on a GPU what the memory holds", None, least=1
    )
    max_requests: int = option("requests accepted at once", 32, least=1)
    chunked_prefill_tokens: int = option("prompt tokens prefilled at once", 8192, least=1)
    dtype: str = option(
        "auto takes bfloat16 where the device multiplies it natively", "auto", choices=("auto", "bfloat16", "float32")
    )
    threads: int | None = option("compute threads", None, least=1)
    mem_fraction: float | None = option(
        "share of the memory that SGLang may plan with; the device's default without it", None, above=0, most=1
    )
    device: str = option("what it computes on", "cpu", choices=("cpu", "cuda"))
    tensor_parallel: int = option("devices, or on a CPU processes, that share each layer's heads", 1, least=1)
    nodes: Nodes = group(
        Nodes,
        count=Option(
            "machines that hold one engine, as many ranks on each, by a process of the same options",
            least=1,
            name="nodes",
        ),
        rank=Option(
            "this one among them: 0 serves requests, the others compute for it and tell their health",
            least=0,
            name="node-rank",
        ),
        address=Option(
            "host:port of node 0 where they meet at start; afterwards they talk on ports of the system's choice",
            name="nodes-address",
        ),
    )
    load_format: str = option("how SGLang loads the weights, such as auto or dummy, which makes them up", "auto")
    dense_backend: str | None = option(
        "attention backend of a worker of the dense tier alone: one of SGLang's, or sparsity_dense, which is our"
        " kernels; without it what `sparsity worker tune` found fastest, else SGLang's choice, or the CPU's",
        None,
    )
    overlap: bool = option(
        "whether a sparse tier on a GPU prepares a step while the last one runs, as the dense tier does", True
    )
    state_folder: Path = option(
        "where compiled kernels are kept, and what `sparsity worker tune` found",
        state_folder,
        shown="sparsity-router/worker in the user's state folder",
    )
    lease_key_file: Path | None = option(
        "the key that routers sign leases with; SPARSITY_LEASE_KEY holds the key itself", None
    )
    require_lease: bool = option("refuse requests without a router's lease", False)
    access: Path | None = option(
        "routers' YAML file of who may call what; an operator may drain it. Without it nobody may where leases are"
        " demanded, and else everybody",
        None,
    )
    coalescing: Coalescing = group(
        Coalescing,
        tokens=Option("tokens of a fast stream that a message gathers; 1 holds nothing", "coalesce-tokens", least=1),
        seconds=Option("that they are held at most", "coalesce-seconds", least=0, most=1),
    )
    tls: ServerTls | None = group(
        None,
        cert=Option("PEM certificate chain; renewed files are taken up", "tls-cert"),
        key=Option("its PEM key", "tls-key"),
        client_ca=Option("PEM authorities of routers; demands their certificates", "tls-client-ca"),
    )
    metrics_listen: str | None = option("host:port to serve Prometheus' text on, at /metrics", None)
    health_listen: str | None = option("host:port of a plaintext health service for probes", None)
    drain_seconds: float = option("time that streams in flight get at shutdown", 30.0, least=0)
    measured_share: float = option(
        "share of the requests whose coverage is measured on some rows, not only estimated", 0.05, least=0, most=1
    )
    reasoning_open: str = option("token that opens a reasoning span", "<think>")
    reasoning_close: str = option("token that closes it", "</think>")
    tool_parser: str = option(
        "how the model writes calls of tools: a parser of SGLang's by its name, auto, which goes by the chat template,"
        " or none",
        "auto",
    )
    reasoning_parser: str = option(
        "how the model marks what it thinks: a parser of SGLang's by its name, auto, which goes by the chat template,"
        " or none",
        "auto",
    )
    allow_expressions: bool = option(
        "take regular expressions and grammars that answers are to be held to, in schemas too: some take minutes a"
        " token, in which nobody is served",
        False,
    )
    engine: str = option("sglang, or echo, which runs no model and answers with the prompt", SGLANG, choices=ENGINES)

    def __post_init__(self) -> None:
        check_bounds(self)
        # Frozen: this is how what several texts said becomes one value.
        object.__setattr__(self, "tiers", _tiers(self.tiers))
        self.nodes.ranks(self.tensor_parallel)
        if self.engine == ECHO and self.nodes.count > 1:
            raise ConfigurationError("--nodes: an echo is one process, which nothing shares")
        if self.engine == ECHO and self.profiles:
            raise ConfigurationError("--profile: an echo attends nothing, so it takes none")
        if self.sparse_tiers and not self.profiles and self.engine != ECHO:
            raise ConfigurationError(f"--profile: the {self.sparse_tiers[0]} tier needs one")
        if self.dense_backend and self.sparse_tiers and self.densest == DENSE:
            raise ConfigurationError("--dense-backend: is for a worker of the dense tier alone")
        for name in ("config.json", "tokenizer.json"):
            if not (self.model_path / name).is_file():
                raise ConfigurationError(
                    f"--model: {self.model_path} has no {name}; give the folder of a Hugging Face model"
                    " (`sparsity up` without --model fetches the default one)"
                )

    @property
    def densest(self) -> str:
        """The tier of requests that ask for none."""
        return self.tiers[0]

    @property
    def sparse_tiers(self) -> tuple[str, ...]:
        """Those that need a profile."""
        return tuple(tier for tier in self.tiers if tier != DENSE)

    @property
    def reasoning_markers(self) -> tuple[str, str]:
        """The tokens around a reasoning span."""
        return self.reasoning_open, self.reasoning_close


def _tiers(given: Sequence[str]) -> tuple[str, ...]:
    """What was given, each text of which may name several with commas between; the densest first."""
    named = [name.strip() for text in given for name in text.split(",")]
    known = f"--tiers: must be one or several of {', '.join(TIERS)} with commas between"
    if not named:
        raise ConfigurationError(f"{known}; none is given")
    for place, name in enumerate(named):
        if name not in TIERS:
            raise ConfigurationError(f"{known}, not {name!r}")
        if name in named[:place]:
            raise ConfigurationError(f"--tiers: {name} is given twice")
    return tuple(sorted(named, key=TIERS.index))


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What requests are checked against.

    Attributes:
        name: what it is served by.
        context_length: prompt plus completion, tokens.
        vocabulary_size: token ids lie below it.
        index_topk: tokens that the model's own indexer picks for each query (DeepSeek sparse attention); 0 without one.
        latent: whether its KV cache holds one latent vector a token for all heads (MLA).
        heads: query heads; 0 where its config does not say.
        defaults: how it is sampled where a request does not say.
        ends: token ids that end a turn of it.
    """

    name: str
    context_length: int
    vocabulary_size: int
    index_topk: int = 0
    latent: bool = False
    heads: int = 0
    defaults: Defaults = field(default_factory=Defaults)
    ends: frozenset[int] = frozenset()

    @classmethod
    def read(cls, model_path: Path, name: str | None = None) -> ModelFacts:
        """Reads the model's config.json.

        Args:
            model_path: its folder.
            name: what it is served by; the folder's name without it.

        Raises:
            ConfigurationError: when it is not readable or lacks a field.
        """
        path = model_path / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            context, vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
            picks, latent, heads = (int(config.get(key) or 0) for key in _OPTIONAL)
            defaults = Defaults.read(model_path)
            return cls(
                name or model_path.name,
                context,
                vocabulary,
                picks,
                bool(latent),
                heads,
                defaults,
                defaults.ends | ends_of(config),
            )
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
