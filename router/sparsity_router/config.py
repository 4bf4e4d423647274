"""Options of one router process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsity_policies.decisions.costs import H100, GpuSpeed
from sparsity_policies.decisions.model_bands import NO_BANDS, ModelBands
from sparsity_policies.documents.shipped import band_sets, bands_of
from sparsity_policies.model import TTL_SECONDS
from sparsity_policies.storage.redis_url import ENVIRONMENT, read_url
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import ClientTls, ServerTls
from sparsity_serving.addresses import ROUTER
from sparsity_serving.engines import ENGINES, SGLANG
from sparsity_serving.options.declaration import Option, check_bounds, group, option

from sparsity_router.fleet.fleet import Admission
from sparsity_router.fleet.patience import FIRST_SECONDS, NEXT_SECONDS, Patience, read_seconds
from sparsity_router.models.document import Fronted, check_folder, read_models, single
from sparsity_router.observing.recorder import PER_SECOND, RATE

DETECT = ("undeclared", "declared", "off")
SESSIONS = ("keep", "freely")
PREFIX = "SPARSITY_ROUTER"
_NO_BAND_SET = "none"
_ADMISSION = Admission()
_STORES = (
    "redis://host:port/db, redis+sentinel://host:port,host:port/master, redis+cluster://host:port,host:port; TLS by"
    " rediss://, rediss+sentinel:// and rediss+cluster://"
)


def _band_set(source: str, text: str) -> str | None:
    return None if text == _NO_BAND_SET else text


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What a router is started with: every option of `python -m sparsity_router`, stated here only."""

    model_path: Path | None = option(
        "folder of the served model, with its tokenizer.json and config.json; needed without --models",
        None,
        name="model",
    )
    workers: tuple[str, ...] = option(
        "a worker's host:port, dns:///name:port or k8s:///namespace/service:port, or a dense server of stock SGLang,"
        " sglang+grpc://host:port; repeat",
        (),
        name="worker",
    )
    redis_url: str | None = option(
        f"policy store: {_STORES}. Passwords stay out of the process list in the variable, or in"
        f" {ENVIRONMENT['password']} and {ENVIRONMENT['sentinel_password']}",
        None,
        environment="SPARSITY_REDIS_URL",
        secret=True,
    )
    listen: str = option("gRPC address, host:port; port 0 takes a free one", ROUTER)
    http_listen: str | None = option("host:port that OpenAI's HTTP endpoints are served on; none without it", None)
    band_set: str | None = option(
        "shipped policies that an empty store is seeded with",
        "standard",
        choices=(*band_sets(), _NO_BAND_SET),
        read=_band_set,
    )
    policy_ttl: float = option(
        "age at which policies are stale and everything goes dense, seconds", TTL_SECONDS, above=0
    )
    policy_dir: Path | None = option("folder of policy files, the source of truth in a store's place", None)
    max_policy_lag: float = option(
        "time that a known policy change may wait before the router says it is not ready, seconds", 10.0, above=0
    )
    access: Path | None = option("YAML file of who may call what; everybody may do everything without it", None)
    decision_sample: float = option("share of the decisions that is logged", RATE, least=0, most=1)
    decision_rate: float = option(
        "decisions that are logged a second at most, over a minute's mean", PER_SECOND, above=0
    )
    redis_wait_replicas: int = option(
        "replicas of the store that must hold a policy before its write is acknowledged", 0, least=0
    )
    redis_ca: Path | None = option(
        "PEM authorities of the policy store; the system's without it", None, environment=ENVIRONMENT["ssl_ca_certs"]
    )
    redis_cert: Path | None = option(
        "PEM certificate that is shown to the policy store", None, environment=ENVIRONMENT["ssl_certfile"]
    )
    redis_key: Path | None = option("its PEM key", None, environment=ENVIRONMENT["ssl_keyfile"])
    lease_key_file: Path | None = option(
        "the key that workers check leases with, 16 bytes or more; SPARSITY_LEASE_KEY holds the key itself; no leases"
        " without either",
        None,
    )
    snapshot_file: Path | None = option("keeps the last policies, for a start while the store is away", None)
    max_prompt_bytes: int = option("longer prompts are refused before they are tokenized", 4 * 2**20, least=1)
    worker_timeout: float = option("silence after which a worker counts as gone, seconds", 3.0, above=0)
    queue_seconds: float = option(
        "how long a request may wait for room at a full tier; 0 refuses at once", _ADMISSION.queue_seconds, least=0
    )
    queue_limit: int = option("requests that may wait at a tier", _ADMISSION.queue_limit, least=0)
    dense_reserve: float = option(
        "share of each worker that serves dense, of its requests and of its KV cache, that is kept for requests which"
        " policy holds dense",
        _ADMISSION.dense_reserve,
        least=0,
        below=1,
    )
    hedge_seconds: float = option(
        "silence after which a second worker is asked too, before the first message; 0 never does",
        _ADMISSION.hedge_seconds,
        least=0,
    )
    patience: Patience = group(
        Patience,
        first=Option(
            "seconds of a worker's silence before its first message until another is asked; also by tier, such as"
            " dense=600,moderate=300,aggressive=300",
            "first-message-seconds",
            read=read_seconds,
            shown=f"{FIRST_SECONDS:g}",
        ),
        between=Option(
            "seconds of a worker's silence within a stream until the call ends; also by tier, such as"
            " dense=60,moderate=90,aggressive=90",
            "next-message-seconds",
            read=read_seconds,
            shown=f"{NEXT_SECONDS:g}",
        ),
    )
    detect: str = option(
        "which requests' domain a sentence model tells, beside the model that policies ask to read every prompt",
        "undeclared",
        choices=DETECT,
    )
    detect_seconds: float = option("time for it, past which a request is dense", 1.0, above=0)
    detect_model: Path | None = option("folder with model.onnx and tokenizer.json for it; the installed one", None)
    opinion_seconds: float = option(
        "time for a second opinion on the parts of a prompt that the model of risk finds likely, past which a request"
        " is dense; 0 asks for none",
        0.0,
        least=0,
    )
    sessions: str = option(
        "hold a conversation at the risk of its requests so far, or let it move freely", "keep", choices=SESSIONS
    )
    tenant_limits: Path | None = option("YAML file of tenants' request and token rates; nobody is limited", None)
    tls: ServerTls | None = group(
        None,
        cert=Option("PEM certificate chain; renewed files are taken up", "tls-cert"),
        key=Option("its PEM key", "tls-key"),
        client_ca=Option("PEM authorities of clients; demands their certificates", "tls-client-ca"),
    )
    worker_tls: ClientTls | None = group(
        None,
        ca=Option("PEM authorities of workers; reaches them by TLS", "worker-ca"),
        cert=Option("PEM certificate that is shown to workers", "worker-cert"),
        key=Option("its PEM key", "worker-key"),
        server_name=Option("what workers' certificates name, in the place of their addresses", "worker-tls-name"),
    )
    siblings: Path | None = option("folder that the router processes of one port share", None, inner=True)
    gpu: GpuSpeed = group(
        H100,
        tflops=Option("of dense attention, for the GPU time that is told as saved", "gpu-tflops", above=0),
        terabytes=Option("of its decoding, TB/s, likewise", "gpu-bandwidth", above=0),
    )
    request_log: bool = option("log a line for each request, without its text", False)
    metrics_listen: str | None = option("host:port to serve Prometheus' text on, at /metrics", None)
    health_listen: str | None = option("host:port of a plaintext health service for probes", None)
    connection_seconds: float = option(
        "after which clients connect anew, to find routers that came since; 0 keeps connections", 0.0, least=0
    )
    drain_seconds: float = option("time that streams in flight get at shutdown", 30.0, least=0)
    engine: str = option(
        "of the workers: sglang, or echo, to look at routing without a model; others are not taken",
        SGLANG,
        choices=ENGINES,
    )
    processes: int = option("router processes that share the port", 1, least=1)
    default_new_tokens: int = option(
        "tokens of an answer at most, where neither its caller says nor the model's generation_config.json"
        " (max_new_tokens); 0 is what there is room for. The context bounds it, and an eighth of the tenant's rate"
        " for all of a call; it is reckoned with 128 tokens until it has ended",
        4096,
        least=0,
    )
    served_model_names: tuple[str, ...] = option(
        "what callers ask for the model by, and what its workers may say that they serve, beside the folder's name;"
        " the first is the model's name, which the folder's is without it; repeat",
        (),
        name="served-model-name",
    )
    models: Path | None = option(
        "YAML file of several models, each with its folder and its workers, in the place of --model and --worker", None
    )
    models_digest: str | None = option("SHA-256 of that file as all processes of one port read it", None, inner=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.model_bands()
        if self.worker_tls is not None and self.worker_tls.ca is None:
            raise ConfigurationError("--worker-ca: must be given with the other options of workers' TLS")
        if self.redis_url is None and self.policy_dir is None:
            raise ConfigurationError("--redis-url: give a policy store, or a folder of policies with --policy-dir")
        if self.redis_url is None and (self.redis_ca or self.redis_cert or self.redis_key):
            raise ConfigurationError("--redis-ca, --redis-cert and --redis-key: give them with --redis-url")
        if self.redis_wait_replicas and self.redis_url and read_url(self.redis_url).kind == "cluster":
            problem = "WAIT is not to be had through a cluster client; set min-replicas-to-write on its servers"
            raise ConfigurationError(f"--redis-wait-replicas: {problem}")

    def fronted(self) -> tuple[Fronted, ...]:
        """The models that the router fronts, the default one first.

        Raises:
            ConfigurationError: naming the option.
        """
        if self.models is not None:
            if self.model_path is not None or self.workers or self.served_model_names:
                problem = "names models, folders and workers; leave --model, --worker and --served-model-name out"
                raise ConfigurationError(f"--models: {problem}")
            return read_models(self.models, self.models_digest)
        if self.model_path is None:
            raise ConfigurationError("--model: give the folder of the served model, or several models by --models")
        if not self.workers:
            raise ConfigurationError("--worker: give the address of at least one worker")
        check_folder(self.model_path, "--model")
        return (single(self.model_path, self.workers, self.served_model_names),)

    def model_bands(self) -> ModelBands:
        """Length bands of models that have their own.

        Raises:
            ConfigurationError: where there is no band set that policies could have taken theirs from.
        """
        own = {one.name: one.bands for one in self.fronted() if one.bands}
        if own and self.band_set is None:
            raise ConfigurationError("--models: bands stand in the place of the band set's, and --band-set is none")
        return ModelBands(bands_of(self.band_set), own) if own and self.band_set else NO_BANDS
