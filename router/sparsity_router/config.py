"""Options of one router process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparsity.engines import ENGINES, SGLANG
from sparsity.errors import ConfigurationError
from sparsity.tls import ClientTls, ServerTls
from sparsity_policies.decisions.costs import H100, GpuSpeed
from sparsity_policies.storage.redis_url import read_url

from sparsity_router.fleet.patience import Patience

DETECT = ("undeclared", "declared", "off")
SESSIONS = ("keep", "freely")


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What a router is started with.

    Attributes:
        model_path: folder with the served model's tokenizer.json and config.json.
        workers: gRPC targets of the workers.
        redis_url: the policy store; None with a policy folder, when nothing is stored.
        listen: gRPC address, `host:port`; port 0 takes a free one.
        band_set: the set of shipped policies that an empty store is seeded with; None seeds nothing.
        policy_ttl: age past which policies are stale and everything goes dense, seconds.
        policy_dir: folder of policy files that is the source of truth in the place of the store.
        max_policy_lag: time that a known change may wait before this router tells it is not ready, seconds.
        access: file of the principals and what they may call; None lets everybody do everything.
        decision_sample: share of the decisions that is logged, in [0, 1].
        decision_rate: decisions that are logged a second at most, over a minute's mean.
        snapshot_file: where the last policies are kept, for a start while the store is away.
        lease_key_file: the key that workers check leases with; None takes SPARSITY_LEASE_KEY, else gives no leases.
        redis_wait_replicas: replicas that must hold a policy before its write is acknowledged.
        max_prompt_bytes: longer prompts are refused before they are tokenized.
        worker_timeout: silence after which a worker counts as gone, seconds.
        queue_seconds: how long a request may wait for room at a full tier; 0 refuses at once.
        queue_limit: requests that may wait at a tier.
        hedge_seconds: after which a second worker is asked too, while the first has not spoken; 0 never does.
        patience: how long a worker may say nothing before another one is asked.
        dense_reserve: share of each dense worker kept for requests that policy holds dense, in [0, 1).
        detect: which requests the semantic classifier is asked about: `undeclared`, also `declared` ones, or `off`.
        detect_seconds: the time budget of its answer.
        detect_model: folder with model.onnx and tokenizer.json; None takes the installed model.
        sessions: `keep` a conversation at its tier or denser, or let it move `freely`.
        tenant_limits: file of tenants' request and token rates; None limits nobody.
        tls: what the router proves itself with; None is plain text.
        worker_tls: what is trusted of workers, and shown to them; None is plain text.
        siblings: folder that the router processes of this port share; None for a port of its own.
        gpu: the speed at which saved attention is told as GPU time.
        request_log: whether a line is logged for each request.
        metrics_listen: `host:port` of the Prometheus endpoint; None serves none.
        health_listen: `host:port` of the plaintext health service for probes; None serves none.
        connection_seconds: after which clients connect anew, to find routers that came since; 0 keeps connections.
        drain_seconds: time that streams in flight get at shutdown.
        engine: what workers must answer with: `sglang`, or `echo`, to look at routing without a model.
    """

    model_path: Path
    workers: tuple[str, ...]
    redis_url: str | None = field(repr=False)
    listen: str = "127.0.0.1:7000"
    band_set: str | None = "standard"
    policy_ttl: float = 300.0
    policy_dir: Path | None = None
    max_policy_lag: float = 10.0
    access: Path | None = None
    decision_sample: float = 1.0
    decision_rate: float = 10.0
    redis_wait_replicas: int = 0
    lease_key_file: Path | None = None
    snapshot_file: Path | None = None
    max_prompt_bytes: int = 4 * 2**20
    worker_timeout: float = 3.0
    queue_seconds: float = 10.0
    queue_limit: int = 256
    dense_reserve: float = 0.25
    hedge_seconds: float = 0.0
    patience: Patience = field(default_factory=Patience)
    detect: str = "undeclared"
    detect_seconds: float = 1.0
    detect_model: Path | None = None
    sessions: str = "keep"
    tenant_limits: Path | None = None
    tls: ServerTls | None = None
    worker_tls: ClientTls | None = None
    siblings: Path | None = None
    gpu: GpuSpeed = H100
    request_log: bool = False
    metrics_listen: str | None = None
    health_listen: str | None = None
    connection_seconds: float = 0.0
    drain_seconds: float = 30.0
    engine: str = SGLANG

    def __post_init__(self) -> None:
        if not self.workers:
            raise ConfigurationError("--worker: give the address of at least one worker")
        for name in ("tokenizer.json", "config.json"):
            if not (self.model_path / name).is_file():
                problem = (
                    f"--model: {self.model_path} has no {name}; give the folder of the model that the workers serve"
                )
                raise ConfigurationError(problem)
        for option, value, known in (
            ("detect", self.detect, DETECT),
            ("sessions", self.sessions, SESSIONS),
            ("engine", self.engine, ENGINES),
        ):
            if value not in known:
                raise ConfigurationError(f"--{option}: must be one of {', '.join(known)}, not {value!r}")
        if self.detect_seconds <= 0:
            raise ConfigurationError("--detect-seconds: must be more than 0")
        if self.max_prompt_bytes < 1:
            raise ConfigurationError("--max-prompt-bytes: must be at least 1")
        if self.drain_seconds < 0 or self.connection_seconds < 0:
            raise ConfigurationError("--drain-seconds and --connection-seconds: must be from 0")
        if min(self.gpu) <= 0:
            raise ConfigurationError("--gpu-tflops and --gpu-bandwidth: must be more than 0")
        if self.policy_ttl <= 0:
            raise ConfigurationError("--policy-ttl: must be more than 0 seconds")
        if self.max_policy_lag <= 0:
            raise ConfigurationError("--max-policy-lag: must be more than 0 seconds")
        if self.queue_seconds < 0 or self.queue_limit < 0:
            raise ConfigurationError("--queue-seconds and --queue-limit: must be from 0")
        if self.hedge_seconds < 0:
            raise ConfigurationError("--hedge-seconds: must be from 0")
        if not 0 <= self.dense_reserve < 1:
            raise ConfigurationError("--dense-reserve: must be from 0 to below 1")
        if not 0 <= self.decision_sample <= 1:
            raise ConfigurationError("--decision-sample: must be from 0 to 1")
        if self.decision_rate <= 0:
            raise ConfigurationError("--decision-rate: must be more than 0 a second")
        if self.redis_url is None and self.policy_dir is None:
            raise ConfigurationError("--redis-url: give a policy store, or a folder of policies with --policy-dir")
        if self.redis_wait_replicas < 0:
            raise ConfigurationError("--redis-wait-replicas: must be from 0")
        if self.redis_wait_replicas and self.redis_url and read_url(self.redis_url).kind == "cluster":
            problem = "WAIT is not to be had through a cluster client; set min-replicas-to-write on its servers"
            raise ConfigurationError(f"--redis-wait-replicas: {problem}")
