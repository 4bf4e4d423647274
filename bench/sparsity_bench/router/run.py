"""The router benchmark: every goal of a data plane, and the peers beside it, in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Tier
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.corpus import excerpt
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_serving.benchmark import Row, against, percentile

from sparsity_bench import processes
from sparsity_bench.policies import latency, scale
from sparsity_bench.policies.replicas import group
from sparsity_bench.router import paths, peers, pressure

# Room for the largest prompt, whatever the tokenizer makes of it.
_CONTEXT_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each part is run.

    Attributes:
        requests: of each way to the worker.
        soak: requests of the soak.
        overload_seconds: of each load.
        cancels: requests that are given up one by one.
        changes: policy edits, and throws of the kill switch.
        peers: whose routers are installed and measured.
    """

    requests: int = 2000
    soak: int = 100_000
    overload_seconds: float = 20.0
    cancels: int = 100
    changes: int = 50
    peers: tuple[peers.Peer, ...] = peers.PEERS


async def measure(model: Path, plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """Measures everything.

    Raises:
        EngineError: when an answer is broken or a decision wrong: no figure is given then.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = processes.roomy(model, folder, _CONTEXT_TOKENS)
        say("decisions in process ...")
        rows = await decisions(ModelTokenizer(model), plan.requests)
        measured = await paths.measure(model, folder, plan.requests, say)
        rows += measured.rows
        rows += await peers.measure(measured.own, measured.shape, folder, plan.requests // 2, say, plan.peers)
        say("policy edits and the kill switch on three routers ...")
        async with group(model, folder) as routers:
            floor = percentile(await latency.floor(routers, plan.changes), 0.99)
            rows += await latency.edits(routers, folder, plan.changes, floor, say)
            rows += await latency.kill_by_store(routers, plan.changes, floor)
        say("overload, and callers that leave ...")
        rows += await pressure.overload(model, folder, plan.overload_seconds)
        rows.append(await pressure.cancels(model, folder, plan.cancels))
        say(f"a soak of {plan.soak} requests ...")
        rows.append(await pressure.soak(model, folder, plan.soak, say))
    return rows


async def decisions(tokenizer: ModelTokenizer, count: int) -> list[Row]:
    """Classification and decision of a request as it comes, without gRPC, beside scan and decision alone.

    Raises:
        EngineError: when a decision is wrong.
    """
    shipped = shipped_policies("standard")
    snapshot, classifier = scale.snapshot(shipped), Classifier(tokenizer, 2**23)
    rows = []
    for size, median_goal, tail_goal in scale.DECISION_GOALS:
        request = make_request(excerpt(size), domain="medical", tenant="t", session="s", max_new_tokens=1)
        whole, alone = [], []
        for _ in range(max(count // 2, 20)):
            started = time.perf_counter()
            decision = decide((await classifier.classify(request, snapshot)).signals, snapshot)
            between = time.perf_counter()
            whole.append((between - started) * 1e6)
            scale.scan_and_decide(request.text, request.context.domain, snapshot)
            alone.append((time.perf_counter() - between) * 1e6)
            if decision.tier is not Tier.DENSE:
                raise EngineError(f"the decision is wrong: {decision}")
        shape = f"{size} bytes of text, all scanned, {len(shipped)} domains, {len(whole)} decisions"
        for share, goal, word in ((0.5, median_goal, "p50"), (0.99, tail_goal, "p99")):
            row = Row(f"decision in process, {word}", shape, percentile(whole, share), "us")
            rows.append(against(row, "scan and decide alone", percentile(alone, share), goal))
    return rows
