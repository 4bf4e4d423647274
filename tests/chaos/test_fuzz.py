"""Random calls of every method, some at a time: fields at their edges, bytes that are nothing, streams left early."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sparsity.v1 import fleet_pb2, inference_pb2, policy_pb2
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from support.fake_worker import FakeWorker
from support.rig import AGGRESSIVE, DENSE, MODERATE
from support.router import running
from support.tiny import tiny_model
from support.valkey import Valkey

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
CALLS, AT_ONCE = 20_000, 16
# What nobody may ever be answered.
FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
SERVICES = [
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    fleet_pb2.DESCRIPTOR.services_by_name["FleetService"],
]
TEXTS = ("", "hi", "rag", "code", "x" * 256, "x" * 257, "é" * 300, "\0", "<|end|>", "1-1", "a" * 20_000, "2020-01-01")
KINDS = FieldDescriptor
WHOLE = {
    KINDS.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    KINDS.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    KINDS.CPPTYPE_UINT32: (0, 2**32 - 1),
    KINDS.CPPTYPE_UINT64: (0, 2**64 - 1),
}
NUMBERS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))


def scalar(field: FieldDescriptor, chance: random.Random) -> Any:
    if field.cpp_type in WHOLE:
        low, high = WHOLE[field.cpp_type]
        return chance.choice((max(low, 0), 1, 2, 9, 100, low, high, chance.randint(low, high)))
    if field.cpp_type == KINDS.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type == KINDS.CPPTYPE_ENUM:
        return chance.choice((*(value.number for value in field.enum_type.values), 99))
    if field.cpp_type == KINDS.CPPTYPE_STRING:
        text = chance.choice(TEXTS)
        return text.encode() if field.type == KINDS.TYPE_BYTES else text
    return chance.choice(NUMBERS)


def made(kind: Descriptor, chance: random.Random, depth: int = 0) -> Message:
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if chance.random() < (0.25 if depth < 5 else 1.0):
            continue
        if field.message_type is None:
            values = [scalar(field, chance) for _ in range(chance.choice((1, 2, 70)) if field.is_repeated else 1)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        elif field.message_type.GetOptions().map_entry:
            for _ in range(chance.choice((1, 3, 70))):
                getattr(message, field.name)[chance.choice(TEXTS) + str(chance.random())] = chance.choice(TEXTS)
        elif field.is_repeated:
            getattr(message, field.name).extend(
                made(field.message_type, chance, depth + 1) for _ in range(chance.randrange(4))
            )
        else:
            getattr(message, field.name).CopyFrom(made(field.message_type, chance, depth + 1))
    return message


def changed(base: Any, chance: random.Random) -> Any:
    """A good message with one field in another's place, however deep it lies."""
    message: Any = type(base)()
    message.CopyFrom(base)
    at, other = message, made(base.DESCRIPTOR, chance)
    while True:
        field = chance.choice(at.DESCRIPTOR.fields)
        single = field.message_type is not None and not field.is_repeated and at.HasField(field.name)
        if single and other.HasField(field.name) and chance.random() < 0.8:
            at, other = getattr(at, field.name), getattr(other, field.name)
            continue
        at.ClearField(field.name)
        only = type(at)()
        only.CopyFrom(other)
        for known, _ in other.ListFields():
            if known is not field:
                only.ClearField(known.name)
        at.MergeFrom(only)
        return message


def good(stored: Any) -> dict[str, Any]:
    """A request of each method that is taken."""
    request = make_request("hi", domain="rag", labels={"a": "b"}, tenant="t", session="s", max_new_tokens=4)
    signals = inference_pb2.Signals(min_tokens=9, max_tokens=9, domain="rag", labels={"a": "b"})
    override = policy_pb2.Override(scope=policy_pb2.OVERRIDE_SCOPE_TENANT, target="none", reason="fuzz")
    return {
        "Generate": request,
        "Route": inference_pb2.RouteRequest(request=request),
        "Explain": inference_pb2.ExplainRequest(request=request),
        "ReportOutcome": inference_pb2.ReportOutcomeRequest(decision_id="x", score=1.0, metric="m"),
        "PutPolicy": policy_pb2.PutPolicyRequest(policy=stored.policy, reason="fuzz", validate_only=True),
        "SimulatePolicy": policy_pb2.SimulatePolicyRequest(policy=stored.policy, signals=[signals]),
        "PutOverride": policy_pb2.PutOverrideRequest(override=override),
        "UpdateRollout": policy_pb2.UpdateRolloutRequest(domain="rag", action=1, rollout={"steps": [5, 100]}),
    }


def memory() -> int:
    """Resident memory of this process, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def test_no_call_is_answered_with_a_fault(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    workers = [
        await FakeWorker(name, tier, model, places=100).start()
        for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))
    ]
    seed = random.randrange(2**32)
    chance, seen, faults = random.Random(seed), Counter[str](), dict[str, str]()
    calls = int(os.environ.get("FUZZ_CALLS", CALLS))
    (tmp_path / "key").write_text("k" * 32)
    with Valkey() as server:
        config = RouterConfig(
            model,
            tuple(worker.address for worker in workers),
            server.url,
            "127.0.0.1:0",
            queue_seconds=0.2,
            lease_key_file=tmp_path / "key",
            drain_seconds=0.5,
        )
        async with running(config) as router:
            methods = [
                (router.channel.unary_stream(f"/{service.full_name}/{method.name}"), method)
                for service in SERVICES
                for method in service.methods
            ]

            bases = good(await router.get("rag"))

            async def call() -> None:
                ask, method = chance.choice(methods)
                base = bases.get(method.name)
                random_or_near = made(method.input_type, chance) if base is None or chance.random() < 0.3 else None
                request = (random_or_near or changed(base, chance)).SerializeToString()
                if chance.random() < 0.1:
                    request = bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
                leaves = chance.random() < 0.2 or method.name.startswith("Watch")
                stream = ask(request, timeout=5.0)
                try:
                    if leaves:
                        await asyncio.wait_for(stream.read(), chance.choice((0.001, 0.02, 0.2)))
                        stream.cancel()
                        seen["left"] += 1
                        return
                    async for _ in stream:
                        pass
                    seen["OK"] += 1
                except (TimeoutError, asyncio.CancelledError):
                    stream.cancel()
                    seen["left"] += 1
                except grpc.aio.AioRpcError as error:
                    seen[error.code().name] += 1
                    if error.code() in FAULTS:
                        faults.setdefault(f"{method.name}: {error.code().name}: {error.details()}", request.hex()[:200])

            async def caller(count: int) -> None:
                for _ in range(count):
                    await call()

            used = []
            for _ in range(8):
                await asyncio.gather(*(caller(calls // 8 // AT_ONCE) for _ in range(AT_ONCE)))
                used.append(memory())
            # It goes up and down by some MiB: means of a quarter of the calls, the first of them to warm up.
            before, after = statistics.fmean(used[2:4]), statistics.fmean(used[6:])
            assert await router.health() == "SERVING"
    for worker in workers:
        await worker.stop()
    told = ", ".join(f"{count} {what}" for what, count in seen.most_common())
    print(f"seed {seed}: {told}; {before:.0f} MiB, then {after:.0f} MiB", end=" ")
    assert not faults, faults
    assert after <= 1.05 * before
