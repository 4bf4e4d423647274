"""Decision time with few and many domains, fairness and stickiness of rollouts, many writers, replay."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Iterable

from sparsity_policies.decisions.costs import NO_SHAPES
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.rollout import Action, bucket, move
from sparsity_policies.decisions.simulate import Simulation
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Decision, Policy, Signals, StoredPolicy, Tier
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.prompts.corpus import excerpt
from sparsity_rpc.errors import EngineError
from sparsity_serving.benchmark import Row, judged

from sparsity_bench.policies.latency import toggled
from sparsity_bench.policies.replicas import Group

DOMAINS = 5_000
# Decisions of a size are as many as this much text holds, and at least so many.
DECIDED_BYTES, LEAST_DECISIONS = 4_000_000, 200
WRITERS, WRITES = 8, 125
# To read text in its normal form and look for phrases: 4 MB within 100 ms.
_SCAN_US = 100_000 / 4_000_000
# Goals of a decision: bytes of the prompt, microseconds at the median and at the 99th percentile; the scan is added.
DECISION_GOALS = tuple(
    (size, median + _SCAN_US * size, tail + _SCAN_US * size)
    for size, median, tail in ((4_096, 60.0, 200.0), (220_000, 250.0, 1000.0))
)
_STEPS = (1, 5, 20, 50, 90)


def many_policies(count: int) -> list[Policy]:
    """Domains of many teams: bands, a rule each, and detection in every tenth."""
    found = []
    for number in range(count):
        document: dict[str, object] = {
            "domain": f"team-{number}",
            "risk": "low",
            "bands": [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 8192, "tier": "moderate"}],
            "rules": [{"name": "vip", "when": "tenant == 'acme' && tokens > 100", "tier": "dense"}],
        }
        if number % 10 == 0:
            document["detection"] = {"flag": f"flag-{number}", "literals": [f"internal code word {number * 7919}"]}
        found.append(parse_policy(document))
    return found


def snapshot(policies: Iterable[Policy]) -> Snapshot:
    """A snapshot of just these policies."""
    return Snapshot.build(1, [StoredPolicy(policy, f"{n}", n, 0.0, "", "") for n, policy in enumerate(policies)])


def decisions() -> list[Row]:
    """Scan and decision of one request in this process, with ten domains and with thousands."""
    shipped = shipped_policies("standard")
    few, many = snapshot(shipped), snapshot([*shipped, *many_policies(DOMAINS)])
    rows = []
    for size, median_goal, tail_goal in DECISION_GOALS:
        text = excerpt(size)
        times: dict[str, list[float]] = {"few": [], "many": []}
        for _ in range(max(LEAST_DECISIONS, DECIDED_BYTES // size)):
            # By turns, so that drift of the machine meets both alike.
            for name, held, domain in (("few", few, "rag"), ("many", many, "team-77")):
                started = time.perf_counter()
                decision = scan_and_decide(text, domain, held)
                times[name].append((time.perf_counter() - started) * 1e6)
                if decision.tier is not Tier.MODERATE:
                    raise EngineError(f"the decision is wrong: {decision}")
        for share, goal, word in ((0.5, median_goal, "p50"), (0.99, tail_goal, "p99")):
            few_time, many_time = (sorted(times[name])[int(share * len(times[name]))] for name in ("few", "many"))
            shape = f"{size} bytes of prompt, all scanned, {DOMAINS} domains, {len(times['many'])} decisions"
            row = Row(
                f"decision {word}", shape, many_time, "us", f"{len(shipped)} domains", few_time, few_time / many_time
            )
            rows.append(judged(row, f"<= {goal:g} us", met=many_time <= goal))
    return rows


def scan_and_decide(text: str, domain: str, held: Snapshot) -> Decision:
    """What a decision costs at the least: a scan of the whole prompt, and the decision from its signals."""
    scan = held.scanner.scan(text)
    return decide(Signals(9000, 9000, domain=domain, flags=scan.flags, tenant="t", session="s"), held)


def fairness(keys: int = 100_000) -> Row:
    """How likely a fair split would be at least as uneven as ours, at the worst of several steps (chi-squared)."""
    places = [bucket("bench", f"session-{number}") for number in range(keys)]
    worst = 1.0
    for step in _STEPS:
        inside, expected = sum(place < step for place in places), keys * step / 100
        statistic = (inside - expected) ** 2 / expected + (inside - expected) ** 2 / (keys - expected)
        # One degree of freedom.
        worst = min(worst, math.erfc(math.sqrt(statistic / 2)))
    shape = f"{keys} sessions, steps of {', '.join(map(str, _STEPS))} percent"
    return judged(Row("rollout split, chi-squared", shape, worst, "p"), "p > 0.01 at every step", met=worst > 0.01)


async def stickiness(group: Group, sessions: int) -> Row:
    """Sessions that some router, or a restarted one, puts on another side."""
    plain = toggled(1, "bench-sticky")
    policy = parse_policy(
        {"domain": plain.domain, "risk": "low", "bands": [{"from_tokens": 0, "tier": "moderate"}],
         "rollout": {"steps": [50, 100]}}
    )  # fmt: skip
    await group.reached(await group.put(move(policy, Action.START)))
    names = [f"session-{number}" for number in range(sessions)]

    async def sides() -> list[list[int]]:
        return [[await replica.tier(plain.domain, name) for name in names] for replica in group.replicas]

    before = await sides()
    last = group.replicas[-1]
    await asyncio.to_thread(last.child.stop, 5.0)
    last.child.start()
    await last.ready()
    after = await sides()
    different = sum(len({*tiers}) > 1 for tiers in zip(*before, *after, strict=True))
    held = before[0].count(Tier.DENSE.value)
    shape = f"{sessions} sessions ({held} held back at 50 percent), 3 routers, one of them restarted"
    row = Row("sessions that changed sides", shape, float(different), "sessions")
    return judged(row, "0", met=different == 0 and 0 < held < sessions)


_WRITER = """
import asyncio, json, sys
from sparsity_rpc.tls import open_aio_channel
from sparsity.v1 import policy_pb2, policy_pb2_grpc
from sparsity_policies.wire import policy_to_wire
from sparsity_bench.policies.latency import toggled

async def main(address, name, count):
    async with open_aio_channel(address, None) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        policies = [policy_to_wire(toggled(n, f"bench-writes-{n % 10}")) for n in range(count)]
        calls = [stub.PutPolicy(policy_pb2.PutPolicyRequest(policy=p, reason=name)) for p in policies]
        print(json.dumps([(await call).policy.revision for call in calls]))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def writers(group: Group) -> list[Row]:
    """Many writers at once: revisions without a gap or a repetition."""
    store = PolicyStore(group.url)
    before = await store.revision_number()
    started = time.perf_counter()
    processes = []
    for number in range(WRITERS):
        address = group.replicas[number % len(group.replicas)].address
        command = (sys.executable, "-c", _WRITER, address, f"writer-{number}", str(WRITES))
        processes.append(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))
    outputs = [(await process.communicate())[0] for process in processes]
    took = time.perf_counter() - started
    revisions = sorted(revision for output in outputs for revision in json.loads(output))
    missing = len(set(range(before + 1, before + 1 + WRITERS * WRITES)) - set(revisions))
    await group.reached(before + WRITERS * WRITES)
    await store.close()
    shape = f"{WRITERS * WRITES} PutPolicy calls of {WRITERS} processes at 3 routers"
    gaps = Row("revisions missing or given twice", shape, float(missing), "revisions")
    return [
        judged(gaps, "0", met=missing == 0),
        Row("concurrent writes", f"{shape}, starting the processes included", WRITERS * WRITES / took, "writes/s"),
    ]


async def fill(group: Group) -> Row:
    """Brings the store to thousands of domains, and tells how long the routers took to take them up."""
    store = PolicyStore(group.url)
    started = time.perf_counter()
    puts = (store.put(policy, etag=None, actor="bench", reason="fill") for policy in many_policies(DOMAINS))
    await asyncio.gather(*puts)
    await group.reached(await store.revision_number())
    took = time.perf_counter() - started
    await store.close()
    return Row("filling the store", f"{DOMAINS} domains, until 3 routers decide from all of them", took, "s")


def equality(count: int = 10_000) -> Row:
    """Random requests on which a simulated draft decides as it does once it is live."""
    chance = random.Random(5)
    present = snapshot(shipped_policies("small-context"))
    draft = parse_policy(
        {"domain": "rag", "risk": "low", "rollout": {"steps": [30, 100], "held_back": "moderate"},
         "bands": [{"from_tokens": 0, "tier": "dense"}, {"from_tokens": 500, "tier": "aggressive"}],
         "rules": [{"name": "vip", "when": "tenant == 'acme'", "tier": "dense"}]}
    )  # fmt: skip
    others = [item.policy for item in present.policies.values() if item.policy.domain != draft.domain]
    live = snapshot([*others, draft])
    simulation = Simulation(present, present.with_draft(draft), NO_SHAPES)
    equal = 0
    for _ in range(count):
        tokens = chance.randrange(1, 20_000)
        flags = frozenset(["abuse"] if chance.random() < 0.1 else [])
        signals = Signals(
            max(tokens - chance.randrange(200), 0), tokens, domain=chance.choice(("rag", "medical", "code", "")),
            flags=flags, tenant=chance.choice(("", "acme")), session=f"s{chance.randrange(500)}",
        )  # fmt: skip
        equal += simulation.add(signals).after == decide(signals, live)
    row = Row("simulated decisions equal to live ones", f"{count} random requests", float(equal), "requests")
    return judged(row, f"{count} of {count}", met=equal == count)
