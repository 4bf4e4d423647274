"""Random calls of every method of the embedded service: odd fields, bytes that are nothing, streams used in odd ways.

`FUZZ_CALLS` and `FUZZ_SEED` make it another size, and the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
from sparsity.v1 import fleet_pb2, inference_pb2, policy_pb2, policy_pb2_grpc, worker_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from support.asked.fuzzing import WAYS, Target, call, good, message_for, methods_of
from support.routers.embedded import Embedded, embedded

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
CALLS, AT_ONCE, EIGHTHS = 20_000, 16, 8
# What nobody may ever be answered.
FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"]
WORKER = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]


class Fuzz:
    """Calls of all methods, and how they ended."""

    def __init__(self, targets: list[Target], bases: dict[str, Any], seed: int) -> None:
        self.targets = targets
        self.bases = bases
        self.chance = random.Random(seed)
        self.ended = Counter[str]()
        self.faults: dict[str, str] = {}

    async def make(self, calls: int) -> None:
        """Makes so many, some at a time."""
        await asyncio.gather(*(self._caller(calls // AT_ONCE) for _ in range(AT_ONCE)))

    async def _caller(self, calls: int) -> None:
        made = 0
        while made < calls:
            target, way = self.chance.choice(self.targets), self.chance.choice(WAYS)
            name = target.method.full_name
            request = message_for(target.method, self.bases.get(name), self.chance)
            for code in await call(target, request, way, self.chance):
                made += 1
                self.ended[str(getattr(code, "name", code))] += 1
                if code in FAULTS:
                    self.faults.setdefault(f"{name}, {way}: {code}", request.hex()[:200])


class Processes:
    """All processes of the embedded service, and their memory."""

    def __init__(self, service: Embedded) -> None:
        first = psutil.Process(service.process.pid)
        self.all = [first, *first.children(recursive=True)]

    def mebibytes(self) -> list[float]:
        """What each has in memory that it shares with none."""
        return [process.memory_full_info().uss / 2**20 for process in self.all]

    def gone(self) -> list[int]:
        """Those that have ended."""
        return [process.pid for process in self.all if not process.is_running()]


@asynccontextmanager
async def an_operator_at_work(channel: grpc.aio.Channel) -> AsyncIterator[None]:
    """Somebody who edits a policy and uses the kill switch all the while."""
    stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)

    async def work() -> None:
        for number in range(10**6):
            # By chance others write it meanwhile, or delete it.
            with contextlib.suppress(grpc.aio.AioRpcError):
                stored = (await stub.GetPolicy(policy_pb2.GetPolicyRequest(domain="code"))).policy
                stored.policy.description = f"edit {number}"
                await stub.PutPolicy(
                    policy_pb2.PutPolicyRequest(policy=stored.policy, etag=stored.etag, reason="at work")
                )
            # However many overrides there are, this one has its place.
            override = policy_pb2.Override(id="operator", scope=1, reason="incident")
            await stub.PutOverride(policy_pb2.PutOverrideRequest(override=override))
            await asyncio.sleep(0.1)
            await stub.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="operator"))
            await asyncio.sleep(0.5)

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        ended = working.done()
        working.cancel()
        await asyncio.gather(working, return_exceptions=not ended)


class Found(NamedTuple):
    """What a fuzz came to: how calls ended, which must not have, and memory by process before and after, MiB."""

    ended: Counter[str]
    faults: dict[str, str]
    before: list[float]
    after: list[float]
    gone: list[int]


async def fuzz(service: Embedded, calls: int, seed: int) -> Found:
    """Fuzzes a running service; the memory of a quarter of the calls is compared, once another has warmed it up."""
    workers = [note["address"] for note in json.loads((service.state / "up.json").read_text())["workers"].values()]
    async with contextlib.AsyncExitStack() as stack:
        router, *others = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for address in (service.router, *workers)
        ]
        # A drained worker stays drained: all else would be refused.
        targets = [Target(router, method) for kind in (INFERENCE, POLICY, FLEET) for method in methods_of(kind)]
        targets += [Target(channel, method) for channel in others for method in methods_of(WORKER, "Drain")]
        stub: Any = policy_pb2_grpc.PolicyServiceStub(router)
        stored = (await stub.GetPolicy(policy_pb2.GetPolicyRequest(domain="rag"))).policy
        fuzz, processes = Fuzz(targets, good(stored.policy), seed), Processes(service)
        used = []
        async with an_operator_at_work(router):
            for _ in range(EIGHTHS):
                await fuzz.make(calls // EIGHTHS)
                used.append(processes.mebibytes())
                # It goes up and down by some MiB.
        before, after = (
            [statistics.fmean(of) for of in zip(*quarter, strict=True)] for quarter in (used[2:4], used[6:])
        )
        return Found(fuzz.ended, fuzz.faults, before, after, processes.gone())


async def answers(service: Embedded) -> str:
    async with AsyncWireClient(service.router) as client:
        stream = client.generate(make_request("hello", domain="summarization", max_new_tokens=8), 10.0)
        return "".join([response.text async for response in stream])


async def test_no_call_is_answered_with_a_fault(tmp_path: Path) -> None:
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))
    calls = int(os.environ.get("FUZZ_CALLS", CALLS))
    with embedded(tmp_path, "--engine", "echo", seconds=60.0) as service:
        found = await fuzz(service, calls, seed)
        assert await answers(service)
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "logs").iterdir())
    told = ", ".join(f"{count} {what}" for what, count in found.ended.most_common())
    before, after = sum(found.before), sum(found.after)
    each = ", ".join(f"{grown - was:+.1f}" for was, grown in zip(found.before, found.after, strict=True))
    print(f"seed {seed}: {told}; {before:.0f} MiB in {len(found.after)} processes, then {after:.0f} ({each})", end=" ")
    assert not found.faults, found.faults
    assert not found.gone
    assert "Traceback" not in logs, logs[logs.index("Traceback") :][:2000]
    assert after <= 1.05 * before, (found.before, found.after)
