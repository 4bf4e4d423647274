"""`python -m sparsity_worker`: one worker process."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sparsity_rpc.errors import SparsityError
from sparsity_rpc.tls import ServerTls
from sparsity_serving.engines import ENGINES, SGLANG
from sparsity_serving.logs import configure_logs

from sparsity_worker.coalescing import Coalescing
from sparsity_worker.config import TIERS, WorkerConfig
from sparsity_worker.folders import state_folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_worker", description=__doc__)
    parser.add_argument("--worker-id", required=True, help="unique in the fleet")
    parser.add_argument("--tier", required=True, choices=TIERS)
    parser.add_argument("--model", required=True, type=Path, help="folder of a Hugging Face model")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--engine", default=SGLANG, choices=ENGINES, help="echo runs no model")
    parser.add_argument("--profile", help="name or .yaml path of the sparsity profile")
    parser.add_argument("--max-total-tokens", type=int, help="KV cache, tokens; 20480 on the CPU")
    parser.add_argument("--max-requests", type=int, default=32, help="requests accepted at once")
    parser.add_argument("--chunked-prefill-tokens", type=int, default=8192, help="prompt tokens prefilled at once")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="devices that share each layer's heads")
    parser.add_argument("--load-format", default="auto", help="of the weights, SGLang's; dummy makes them up")
    parser.add_argument(
        "--dense-backend", help="SGLang's attention backend of the dense tier; its own choice without it"
    )
    kept = "folder of compiled kernels, and of what `sparsity worker tune` found"
    parser.add_argument("--state-folder", type=Path, default=state_folder(), help=kept)
    overlap = "whether a step is prepared while the last one runs, on a GPU"
    parser.add_argument("--overlap", action=argparse.BooleanOptionalAction, default=True, help=overlap)
    parser.add_argument("--mem-fraction", type=float, help="share of the device's memory that SGLang plans with")
    parser.add_argument("--threads", type=int, help="compute threads")
    parser.add_argument("--lease-key-file", type=Path, help="key that routers sign leases with")
    parser.add_argument("--require-lease", action="store_true", help="refuse requests without a router's lease")
    parser.add_argument("--coalesce-tokens", type=int, default=8, help="a fast stream's tokens that a message gathers")
    parser.add_argument("--coalesce-seconds", type=float, default=0.025, help="that they are held at most")
    parser.add_argument("--metrics-listen", help="host:port to serve Prometheus' text on, at /metrics")
    parser.add_argument("--health-listen", help="host:port of a plaintext health service for probes")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="that streams in flight get at shutdown")
    share = "share of the requests whose coverage is measured on some rows, not only estimated"
    parser.add_argument("--measured-share", type=float, default=0.05, help=share)
    parser.add_argument("--reasoning-open", default="<think>", help="token that opens a reasoning span")
    parser.add_argument("--reasoning-close", default="</think>", help="token that closes it")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate chain; renewed files are taken up")
    parser.add_argument("--tls-key", type=Path, help="its PEM key")
    parser.add_argument("--tls-client-ca", type=Path, help="PEM authorities of routers; demands their certificates")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the worker; 0 after a clean stop, 2 when it cannot serve."""
    # A handler of our own: SGLang sets the root logger up anew.
    logger = logging.getLogger("sparsity")
    logger.propagate = False
    options = vars(parse())
    options["model_path"] = options.pop("model")
    files = [options.pop(f"tls_{name}") for name in ("cert", "key", "client_ca")]
    options["reasoning_markers"] = tuple(options.pop(f"reasoning_{name}") for name in ("open", "close"))
    coalescing = [options.pop(f"coalesce_{name}") for name in ("tokens", "seconds")]
    try:
        configure_logs(logger)
        from sparsity_worker.server import run

        run(WorkerConfig(coalescing=Coalescing(*coalescing), tls=ServerTls.of(*files), **options))
    except SparsityError as error:
        print(f"sparsity-worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
