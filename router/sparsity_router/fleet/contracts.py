"""By which contract a worker is asked: ours, or, of a server of stock SGLang, SGLang's own."""

from __future__ import annotations

from typing import Final, TypeAlias

import grpc
from sparsity.v1 import worker_pb2_grpc
from sparsity_rpc.channels import MESSAGE_SIZE
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.methods import WORKER_GENERATE
from sparsity_rpc.tls import ClientTls, open_aio_channel

from sparsity_router.fleet.stock.contract import SCHEME, SERVICE
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.fleet.stock.server import StockServer

# The former is known to type checkers alone.
Stub: TypeAlias = "worker_pb2_grpc.WorkerServiceAsyncStub | StockServer"

_OPTIONS: Final = (
    *MESSAGE_SIZE,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The ping has a timeout of its own, a minute by default, and the keepalive's alone does not end anything.
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
)
# A worker whose machine is gone closes nothing: its streams end when a ping stays unanswered.
_PINGS: Final = ("grpc.keepalive_time_ms", 5000)
# SGLang's servers hang up on who pings more often than every ten seconds.
_STOCK_PINGS: Final = ("grpc.keepalive_time_ms", 12_000)


def open_worker(target: str, tls: ClientTls | None, model: StockModel | None) -> tuple[grpc.aio.Channel, Stub]:
    """A channel to a worker, and the calls that it takes.

    Args:
        target: `host:port`, of a server of stock SGLang behind :data:`SCHEME`.
        tls: what is trusted of it, and shown to it.
        model: that servers of stock SGLang are to serve.

    Raises:
        ConfigurationError: where a server of stock SGLang cannot be asked.
    """
    if not target.startswith(SCHEME):
        channel = open_aio_channel(target, tls, (*_OPTIONS, _PINGS))
        return channel, worker_pb2_grpc.WorkerServiceStub(channel)
    if model is None:
        raise ConfigurationError(f"--worker: {target}: this router has no model to make tokens of text with")
    address = target.removeprefix(SCHEME)
    channel = open_aio_channel(address, tls, (*_OPTIONS, _STOCK_PINGS))
    return channel, StockServer(channel, address, model)


def generate_method(stub: Stub) -> str:
    """What a worker is asked by for an answer, as spans tell it."""
    return f"{SERVICE}/Generate" if isinstance(stub, StockServer) else WORKER_GENERATE
