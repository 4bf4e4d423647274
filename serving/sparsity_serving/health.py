"""Health: the standard service on a server's own port, and on a plaintext port of its own for Kubernetes' gRPC probes.

Those probes speak no TLS and name a service, so that whether a process is alive and whether it wants traffic are two
questions: `liveness` and `readiness` (https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes).
A thread answers them: a loop that stands still for a moment is alive, and of one that does for long it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sparsity_rpc.errors import ConfigurationError

from sparsity_serving.addresses import read_address

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
_PROBES = 2
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What a server tells of itself; not ready until :meth:`tell` says so."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = ("", *names)
        self._own = health.aio.HealthServicer()
        self._probed = health.HealthServicer()
        self._server: grpc.Server | None = None
        self._draining = False
        self._wanted = False

    @property
    def ready(self) -> bool:
        """Whether traffic is wanted, as it was last told."""
        return self._wanted and not self._draining

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answers for the services of ``server`` on it."""
        health_pb2_grpc.add_HealthServicer_to_server(self._own, server)

    async def serve(self, address: str | None) -> None:
        """Answers probes on ``address``, `host:port`, from now on; None answers none.

        Raises:
            ConfigurationError: when the address cannot be listened on.
        """
        if address is None:
            return
        read_address(address, "--health-listen")
        self._server = grpc.server(ThreadPoolExecutor(_PROBES, thread_name_prefix="probes"))
        health_pb2_grpc.add_HealthServicer_to_server(self._probed, self._server)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(f"--health-listen: cannot listen on {address}: {error}") from error
        for name in (LIVENESS, ""):
            self._probed.set(name, _SERVING)
        self._probed.set(READINESS, _NOT_SERVING)
        self._server.start()

    def alive(self, alive: bool) -> None:
        """Whether the process can go on; from any thread."""
        self._probed.set(LIVENESS, _SERVING if alive else _NOT_SERVING)

    async def tell(self, ready: bool) -> None:
        """Whether traffic is wanted."""
        if self._draining:
            return
        self._wanted = ready
        status = _SERVING if ready else _NOT_SERVING
        for name in self._names:
            await self._own.set(name, status)
        self._probed.set(READINESS, status)

    async def drain(self) -> None:
        """Not ready for good; alive until :meth:`stop`."""
        self._draining = True
        await self._own.enter_graceful_shutdown()
        self._probed.set(READINESS, _NOT_SERVING)

    async def stop(self) -> None:
        """Ends the port for probes."""
        if self._server is not None:
            self._server.stop(0)
