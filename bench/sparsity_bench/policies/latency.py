"""From an edit or a kill switch to its effect on three routers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sparsity.v1 import policy_pb2
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Policy, Tier
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import EngineError
from sparsity_serving.benchmark import Row, spread

from sparsity_bench.policies.replicas import RARELY_SECONDS, Group

DOMAIN = "bench-latency"
EDIT_GOAL_SECONDS = 1.0
KILL_GOAL_SECONDS = 0.5
_PHRASES = 2000
# From then on the routers compile them.
_BEGUN_SECONDS = 0.2
_FLOOR = "bare Valkey: one XADD to three blocked XREADs"
Say = Callable[[str], None]


def toggled(number: int, domain: str = DOMAIN) -> Policy:
    """A policy that gives short prompts moderate or dense by turns."""
    tier = "moderate" if number % 2 else "dense"
    return parse_policy({"domain": domain, "risk": "low", "bands": [{"from_tokens": 0, "tier": tier}]})


def tier_of(number: int) -> int:
    """What :func:`toggled` gives."""
    return (Tier.MODERATE if number % 2 else Tier.DENSE).value


async def floor(group: Group, count: int) -> list[float]:
    """Seconds that the store alone takes to tell three readers."""
    stores = [PolicyStore(group.url) for _ in range(4)]
    times = []
    # By the last entry, and not by `$`: a read that begins late must not wait for the next one.
    last = "0"
    try:
        for number in range(count):
            reads = [asyncio.create_task(store.redis.xread({"bench:floor": last}, block=5000)) for store in stores[1:]]
            await asyncio.sleep(0.01)
            started = time.perf_counter()
            last = str(await stores[0].redis.xadd("bench:floor", {"n": str(number)}))
            await asyncio.gather(*reads)
            times.append(time.perf_counter() - started)
    finally:
        for store in stores:
            await store.close()
    return times


async def edits(group: Group, folder: Path, count: int, floor_p99: float, say: Say) -> list[Row]:
    """`sparsity policy edit`, from the editor's end to the decision of the slowest router."""
    await group.put(toggled(0))
    await group.all_become(tier_of(0), DOMAIN)
    stamp, editor = folder / "stamp", folder / "editor.sh"
    swap = "sed -i 's/tier: dense/tier: @/; s/tier: moderate/tier: dense/; s/tier: @/tier: moderate/' \"$1\""
    editor.write_text(f"{swap}\ndate +%s.%N > {stamp}\n")
    times = []
    for number in range(1, count + 1):
        watching = asyncio.create_task(group.all_become(tier_of(number), DOMAIN, RARELY_SECONDS))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from sparsity_cli.main import main; main()"),
            *("policy", "edit", DOMAIN, "--reason", f"benchmark {number}"),
            *("--router", group.replicas[number % len(group.replicas)].address),
            env=os.environ | {"EDITOR": f"sh {editor}", "VISUAL": ""},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await process.communicate()
        if process.returncode:
            watching.cancel()
            raise EngineError(f"sparsity policy edit failed: {told.decode()[-500:]}")
        times.append(await watching - float(stamp.read_text()))
        if number % 20 == 0:
            say(f"{number} edits, the slowest so far {max(times):.3f} s")
    shape = f"3 routers, {count} edits by `sparsity policy edit`, from the editor's end to the last router's decision"
    return spread("edit to effect", shape, times, EDIT_GOAL_SECONDS, _FLOOR, floor_p99)


async def puts(group: Group, count: int, floor_p99: float, what: str, domain: str = DOMAIN) -> list[Row]:
    """PutPolicy, from the call to the decision of the slowest router."""
    times = []
    await group.put(toggled(0, domain))
    await group.all_become(tier_of(0), domain)
    for number in range(1, count + 1):
        watching = asyncio.create_task(group.all_become(tier_of(number), domain))
        await asyncio.sleep(0.02)
        started = time.time()
        await group.put(toggled(number, domain))
        times.append(await watching - started)
    shape = f"3 routers, {count} PutPolicy calls, {what}"
    return spread("put to effect", shape, times, EDIT_GOAL_SECONDS, _FLOOR, floor_p99)


async def large(group: Group, count: int, floor_p99: float) -> list[Row]:
    """As :func:`puts`, of a policy of a megabyte."""
    exemplars = tuple(f"exemplar number {n} {'x' * 80}" for n in range(10_000))
    times = []
    for number in range(count):
        draft = toggled(number, "bench-large")
        policy = replace(draft, detection=replace(draft.detection, exemplars=exemplars))
        watching = asyncio.create_task(group.all_become(tier_of(number), "bench-large"))
        started = time.time()
        await group.put(policy)
        if number:
            times.append(await watching - started)
        else:
            await watching
    shape = f"3 routers, {len(times)} PutPolicy calls of a policy of 1 MB"
    return spread("put to effect, large policy", shape, times, EDIT_GOAL_SECONDS, _FLOOR, floor_p99)


async def kill_by_store(group: Group, count: int, floor_p99: float) -> list[Row]:
    """PutOverride at one router, to the decision of the slowest."""
    await group.put(toggled(1))
    await group.all_become(tier_of(1), DOMAIN)
    times = []
    for number in range(count):
        replica = group.replicas[number % len(group.replicas)]
        watching = asyncio.create_task(group.all_become(Tier.DENSE.value, DOMAIN))
        await asyncio.sleep(0.02)
        started = time.time()
        answer = await replica.policy.PutOverride(_kill())
        times.append(await watching - started)
        await replica.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=answer.override.id))
        await group.all_become(tier_of(1), DOMAIN)
    shape = f"3 routers, {count} PutOverride calls at one of them"
    return spread("kill switch", shape, times, KILL_GOAL_SECONDS, _FLOOR, floor_p99)


async def kill_while_compiling(group: Group, count: int, floor_p99: float) -> list[Row]:
    """PutOverride at one router while all of them compile thousands of risk phrases."""
    await group.put(toggled(1))
    await group.all_become(tier_of(1), DOMAIN)
    times, busy = [], 0
    for number in range(count):
        draft = toggled(0, "bench-phrases")
        phrases = tuple(f"{number} risk phrase {n * 7919} of many" for n in range(_PHRASES))
        putting = asyncio.create_task(group.put(replace(draft, detection=replace(draft.detection, literals=phrases))))
        await asyncio.sleep(_BEGUN_SECONDS)
        busy += not putting.done()
        watching = asyncio.create_task(group.all_become(Tier.DENSE.value, DOMAIN))
        started = time.time()
        answer = await group.replicas[1].policy.PutOverride(_kill())
        times.append(await watching - started)
        await group.reached(await putting)
        await group.replicas[1].policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=answer.override.id))
        await group.all_become(tier_of(1), DOMAIN)
    if busy < count:
        raise EngineError("the routers had compiled before the switch was thrown: nothing was measured")
    shape = f"3 routers, {count} PutOverride calls while each compiles {_PHRASES} phrases"
    return spread("kill switch while compiling", shape, times, KILL_GOAL_SECONDS, _FLOOR, floor_p99)


async def kill_without_store(group: Group, count: int, floor_p99: float) -> list[Row]:
    """With Valkey stopped: by a call to each router, and by a signal to each process."""
    await group.put(toggled(1))
    await group.all_become(tier_of(1), DOMAIN)
    group.server.stop()
    called, signalled = [], []
    for _ in range(count):
        watching = asyncio.create_task(group.all_become(Tier.DENSE.value, DOMAIN))
        await asyncio.sleep(0.02)
        started = time.time()
        answers = asyncio.gather(*(replica.policy.PutOverride(_kill()) for replica in group.replicas))
        called.append(await watching - started)
        for replica, answer in zip(group.replicas, await answers, strict=True):
            await replica.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=answer.override.id))
        await group.all_become(tier_of(1), DOMAIN)
    for _ in range(count):
        watching = asyncio.create_task(group.all_become(Tier.DENSE.value, DOMAIN))
        await asyncio.sleep(0.02)
        started = time.time()
        for replica in group.replicas:
            replica.signal(signal.SIGUSR1)
        signalled.append(await watching - started)
        for replica in group.replicas:
            replica.signal(signal.SIGUSR2)
        await group.all_become(tier_of(1), DOMAIN)
    shape = f"3 routers, {count} times, Valkey stopped"
    goal = (KILL_GOAL_SECONDS, _FLOOR, floor_p99)
    return [
        *spread("kill switch by call, store down", shape, called, *goal),
        *spread("kill switch by signal, store down", shape, signalled, *goal),
    ]


def _kill() -> policy_pb2.PutOverrideRequest:
    override = policy_pb2.Override(scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="benchmark")
    return policy_pb2.PutOverrideRequest(override=override)


def floor_row(times: list[float]) -> Row:
    """The floor as a row of its own."""
    return spread("store alone, to three readers", f"{len(times)} entries", times)[1]
