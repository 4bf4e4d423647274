"""`python -m sparsity_router`: one router process."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from sparsity.engines import ENGINES, SGLANG
from sparsity.errors import ConfigurationError, SparsityError
from sparsity.logs import configure_logs
from sparsity.tls import ClientTls, ServerTls
from sparsity_policies.decisions.costs import H100, GpuSpeed
from sparsity_policies.documents.shipped import band_sets
from sparsity_policies.storage.redis_url import whole_url

from sparsity_router.config import DETECT, SESSIONS, RouterConfig
from sparsity_router.fleet.patience import FIRST_SECONDS, NEXT_SECONDS, Patience, read_seconds
from sparsity_router.processes import shared_port as processes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_router", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder of the model that the workers serve")
    parser.add_argument(
        "--worker", action="append", default=[], help="host:port, dns:///name:port or k8s:///ns/service:port; repeat"
    )
    parser.add_argument("--engine", default=SGLANG, choices=ENGINES, help="of the workers; echo takes no others")
    forms = "redis://host:port/db, redis+sentinel://host:port,host:port/master, redis+cluster://host:port,host:port"
    forms += "; TLS by rediss://, rediss+sentinel:// and rediss+cluster://"
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("SPARSITY_REDIS_URL"),
        help=f"policy store: {forms}; or SPARSITY_REDIS_URL; passwords in SPARSITY_REDIS_PASSWORD and others",
    )
    parser.add_argument("--redis-ca", type=Path, help="PEM authorities of the policy store; or SPARSITY_REDIS_CA")
    parser.add_argument("--redis-cert", type=Path, help="PEM certificate that is shown to it; or SPARSITY_REDIS_CERT")
    parser.add_argument("--redis-key", type=Path, help="its PEM key; or SPARSITY_REDIS_KEY")
    parser.add_argument("--listen", default="127.0.0.1:7000", help="host:port; port 0 takes a free one")
    parser.add_argument("--band-set", default="standard", choices=[*band_sets(), "none"], help="policies to seed")
    parser.add_argument("--policy-ttl", type=float, default=300.0, help="seconds until policies are stale")
    parser.add_argument(
        "--policy-dir", type=Path, help="folder of policy files, the source of truth in a store's place"
    )
    parser.add_argument("--max-policy-lag", type=float, default=10.0, help="seconds a known change may wait")
    parser.add_argument("--access", type=Path, help="YAML file of who may call what; all may without it")
    parser.add_argument("--decision-sample", type=float, default=1.0, help="share of decisions to log, 0 to 1")
    parser.add_argument("--decision-rate", type=float, default=10.0, help="decisions to log a second at most")
    parser.add_argument("--redis-wait-replicas", type=int, default=0, help="replicas that must hold a policy write")
    parser.add_argument("--queue-seconds", type=float, default=10.0, help="how long a request may wait for room")
    parser.add_argument("--queue-limit", type=int, default=256, help="requests that may wait at a tier")
    parser.add_argument(
        "--dense-reserve", type=float, default=0.25, help="share of dense workers for policy-dense traffic"
    )
    for option, seconds, what in (
        ("--first-message-seconds", FIRST_SECONDS, "of a worker's silence until another is asked"),
        ("--next-message-seconds", NEXT_SECONDS, "of its silence in a stream until the call ends"),
    ):
        told = f"{what}; also by tier: dense=600,moderate=300,aggressive=300"
        parser.add_argument(option, default=f"{seconds:g}", help=told)
    parser.add_argument("--hedge-seconds", type=float, default=0.0, help="until a second worker is asked too; 0: never")
    parser.add_argument("--snapshot-file", type=Path, help="keeps the last policies, for a start without the store")
    parser.add_argument("--lease-key-file", type=Path, help="key that workers check leases with, 16 bytes or more")
    parser.add_argument("--detect", default="undeclared", choices=DETECT, help="whose domain is detected by meaning")
    parser.add_argument("--detect-seconds", type=float, default=1.0, help="time for it, past which a request is dense")
    parser.add_argument("--detect-model", type=Path, help="folder with model.onnx and tokenizer.json for it")
    parser.add_argument("--sessions", default="keep", choices=SESSIONS, help="keep a conversation from getting sparser")
    parser.add_argument("--max-prompt-bytes", type=int, default=4 * 2**20, help="longer prompts are refused")
    parser.add_argument("--tenant-limits", type=Path, help="YAML file of tenants' request and token rates")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate chain; renewed files are taken up")
    parser.add_argument("--tls-key", type=Path, help="its PEM key")
    parser.add_argument("--tls-client-ca", type=Path, help="PEM authorities of clients; demands their certificates")
    parser.add_argument("--worker-ca", type=Path, help="PEM authorities of workers; reaches them by TLS")
    parser.add_argument("--worker-cert", type=Path, help="PEM certificate that is shown to workers")
    parser.add_argument("--worker-key", type=Path, help="its PEM key")
    parser.add_argument("--worker-tls-name", help="what workers' certificates name, in the place of their addresses")
    parser.add_argument("--gpu-tflops", type=float, default=H100.tflops, help="of dense attention, for GPU time saved")
    parser.add_argument("--gpu-bandwidth", type=float, default=H100.terabytes, help="of its decoding, TB/s, for it too")
    parser.add_argument("--request-log", action="store_true", help="log a line for each request, without its text")
    parser.add_argument("--metrics-listen", help="host:port to serve Prometheus' text on, at /metrics")
    parser.add_argument("--health-listen", help="host:port of a plaintext health service for probes")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="that streams in flight get at shutdown")
    parser.add_argument("--connection-seconds", type=float, default=0.0, help="until clients connect anew; 0: never")
    parser.add_argument("--processes", type=int, default=1, help="router processes that share the port")
    parser.add_argument("--siblings", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _worker_tls(options: argparse.Namespace) -> ClientTls | None:
    if options.worker_ca is None:
        if options.worker_cert or options.worker_key or options.worker_tls_name:
            raise ConfigurationError("--worker-ca: give it with --worker-cert and --worker-tls-name")
        return None
    return ClientTls(options.worker_ca, options.worker_cert, options.worker_key, options.worker_tls_name)


def _redis_url(options: argparse.Namespace) -> str | None:
    files = (options.redis_ca, options.redis_cert, options.redis_key)
    if options.redis_url:
        return whole_url(options.redis_url, *files)
    if any(files):
        raise ConfigurationError("--redis-ca, --redis-cert and --redis-key: give them with --redis-url")
    return None


def main() -> int:
    """Runs the router; 0 after a clean stop, 2 when it cannot serve."""
    options = parse()
    try:
        configure_logs(logging.getLogger())
        if options.processes < 1:
            raise ConfigurationError("--processes: must be at least 1")
        if options.processes > 1:
            own = {"--metrics-listen": options.metrics_listen, "--health-listen": options.health_listen}
            return processes.run(sys.argv[1:], options.listen, options.processes, own)
        from sparsity_router.server import run

        run(
            RouterConfig(
                model_path=options.model,
                workers=tuple(options.worker),
                redis_url=_redis_url(options),
                listen=options.listen,
                band_set=None if options.band_set == "none" else options.band_set,
                policy_ttl=options.policy_ttl,
                policy_dir=options.policy_dir,
                max_policy_lag=options.max_policy_lag,
                access=options.access,
                decision_sample=options.decision_sample,
                decision_rate=options.decision_rate,
                redis_wait_replicas=options.redis_wait_replicas,
                lease_key_file=options.lease_key_file,
                snapshot_file=options.snapshot_file,
                queue_seconds=options.queue_seconds,
                queue_limit=options.queue_limit,
                dense_reserve=options.dense_reserve,
                hedge_seconds=options.hedge_seconds,
                patience=Patience(
                    read_seconds("--first-message-seconds", options.first_message_seconds),
                    read_seconds("--next-message-seconds", options.next_message_seconds),
                ),
                detect=options.detect,
                detect_seconds=options.detect_seconds,
                detect_model=options.detect_model,
                sessions=options.sessions,
                siblings=options.siblings,
                max_prompt_bytes=options.max_prompt_bytes,
                tenant_limits=options.tenant_limits,
                gpu=GpuSpeed(options.gpu_tflops, options.gpu_bandwidth),
                request_log=options.request_log,
                metrics_listen=options.metrics_listen,
                health_listen=options.health_listen,
                drain_seconds=options.drain_seconds,
                engine=options.engine,
                connection_seconds=options.connection_seconds,
                tls=ServerTls.of(options.tls_cert, options.tls_key, options.tls_client_ca),
                worker_tls=_worker_tls(options),
            )
        )
    except SparsityError as error:
        print(f"sparsity-router: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
