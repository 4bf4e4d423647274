"""`python -m sparsity_bench.router.bare_relay`: the least that a relay on grpc.aio can do, as a baseline.

It hands the bytes of every message on, without looking at them; it decides nothing.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sparsity_rpc.channels import MESSAGE_SIZE
from sparsity_rpc.tls import open_aio_channel

METHOD = "/sparsity.v1.WorkerService/Generate"


async def serve(address: str, worker: str) -> None:
    """Serves until it is ended."""
    async with open_aio_channel(worker, None) as channel:
        call: Any = channel.unary_stream(METHOD)

        async def relay(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for message in call(request):
                yield message

        handlers: Any = {"Generate": grpc.unary_stream_rpc_method_handler(relay)}
        server = grpc.aio.server(options=MESSAGE_SIZE)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("sparsity.v1.WorkerService", handlers)])
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        server.add_insecure_port(address)
        await server.start()
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--worker", required=True)
    options = parser.parse_args()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options.listen, options.worker))
