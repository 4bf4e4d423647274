"""Faults by which a request would get less attention than policy gives it, through real routers; a line each.

Each line says what was sent, what came back, and what another stream saw that was under way all the while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import make_request
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.matching.scan import Scanner, ScanResult
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.prompts.corpus import excerpt
from support.chaos_router import router_over
from support.fake_worker import Behaviour, FakeWorker, answer, fail
from support.fault_proxy import FaultProxy
from support.rig import AGGRESSIVE, DENSE, MODERATE
from support.router import Router, failure, running, until
from support.snapshots import snapshot
from support.tiny import tiny_model
from support.valkey import Valkey

pytestmark = pytest.mark.chaos
SPARSE = [(0, 3)]


class Bystander:
    """A stream that is under way while others meet a fault."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.text = ""

    async def __call__(self, worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.sampling.seed == 1:
            yield inference_pb2.GenerateResponse(text=">", token_ids=[1])
            await self.go.wait()
        async for response in answer(worker, request, context):
            yield response

    async def read(self, router: Router) -> None:
        """Asks, and reads to the end."""
        request = make_request("hi", domain="code", max_tier=DENSE)
        request.sampling.seed = 1
        async for response in router.inference.Generate(request, timeout=30.0):
            self.text += response.text


@asynccontextmanager
async def fleet(folder: Path, *faulty: FakeWorker, **options: Any) -> AsyncIterator[tuple[Router, Any]]:
    """A router that gives `rag` to aggressive workers, over ``faulty`` and a sound one a tier, beside a bystander."""
    model, other = tiny_model(folder / "model"), Bystander()
    sound = [FakeWorker(name, tier, model, outstanding=10**6) for name, tier in zip("dma", (1, 2, 3), strict=True)]
    for worker in (*faulty, *sound):
        worker.behaviour = other
    async with AsyncExitStack() as stack:
        for worker in (*faulty, *sound):
            await worker.start()
            stack.push_async_callback(worker.stop)
        router = await stack.enter_async_context(
            router_over(folder, *(worker.address for worker in (*faulty, *sound)), **options)
        )
        await router.edit("rag", SPARSE)
        await router.becomes("TIER_AGGRESSIVE")
        for worker in (*faulty, *sound):
            worker.received.clear()
        reading = asyncio.create_task(other.read(router))
        try:
            yield router, sound
        finally:
            other.go.set()
            await reading
        assert other.text == ">abc"
        print("; the other stream: whole", end=" ")


def told(completion: Any) -> str:
    return f"{completion.worker_id} at {inference_pb2.Reason.Name(completion.decision.reason)}"


async def throw(router: Router, name: str = "k") -> None:
    override = policy_pb2.Override(id=name, scope=1, reason="incident")
    await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))


def failing(then: Any, code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Behaviour:
    async def behave(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await then()
        async for response in fail(code)(worker, request, context):
            yield response

    return behave


async def test_a_kill_switch_in_prefill_reaches_the_retry(tmp_path: Path) -> None:
    routers: list[Router] = []
    model = tiny_model(tmp_path / "model")
    broken = FakeWorker("broken", AGGRESSIVE, model)
    async with fleet(tmp_path, broken) as (router, (_, _, peer)):
        routers.append(router)
        broken.behaviour = failing(lambda: throw(routers[0]))
        completion = await router.generate()
        assert completion.worker_id == "d"
        assert not peer.received
        print(f"sent: rag, its worker fails after the switch; came: {told(completion)}", end="")


async def test_sixteen_scans_at_once_are_all_answered() -> None:
    at, text = snapshot(list(shipped_policies("small-context"))), f"{excerpt(30_000)} attorney-client privilege"
    found = await asyncio.gather(*(asyncio.to_thread(at.scanner.scan, text) for _ in range(320)))
    assert all(scan.flags == {"legal"} for scan in found)
    print(f"sent: {len(found)} prompts of 30 KB at once; came: {len(found)} scans", end=" ")


async def test_a_rule_that_cannot_be_evaluated_caps(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (router, _):
        policy = (await router.get()).policy
        policy.rules.add(name="severe", when="int(labels['severity']) >= 3", tier=MODERATE)
        await router.edit(policy=policy)
        await router.becomes("TIER_MODERATE")
        completion = await router.generate(labels={"severity": "high"})
        assert completion.worker_id == "m"
        print(f"sent: severity high to a rule of numbers; came: {told(completion)}", end="")


async def test_no_answer_of_the_classifier_is_a_doubt_of_the_declared_too(tmp_path: Path) -> None:
    worker = await FakeWorker("a", AGGRESSIVE, tiny_model(tmp_path / "model")).start()
    with Valkey() as server:
        config = RouterConfig(tmp_path / "model", (worker.address,), server.url, "127.0.0.1:0", detect_seconds=0.0001)
        async with running(config, detect="declared") as router:
            await router.edit("rag", SPARSE)
            tier, reason = await router.tier("rag")
            assert (tier, reason) == ("TIER_DENSE", "REASON_CLASSIFIER_FAILED")
            print(f"sent: rag, declared, to a classifier that is not there in time; came: {tier}, {reason}", end=" ")
    await worker.stop()


async def test_a_prompt_that_was_not_scanned_to_its_end_goes_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scanner.scan

    def hasty(self: Scanner, text: str | bytes) -> ScanResult:
        found = whole(self, text)
        return found._replace(scanned_bytes=found.scanned_bytes - 1)

    async with fleet(tmp_path) as (router, _):
        monkeypatch.setattr(Scanner, "scan", hasty)
        completion = await router.generate()
        assert completion.worker_id == "d"
        print(f"sent: rag to a scan that stops a byte early; came: {told(completion)}", end="")


async def test_sixteen_made_up_metrics_blind_no_guard(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (router, _):
        policy = (await router.get()).policy
        policy.guards.max_quality_dip = 0.1
        await router.edit(policy=policy)
        start = policy_pb2.UpdateRolloutRequest(domain="rag", action=1, rollout=policy_pb2.Rollout(steps=[50, 100]))
        await router.policy.UpdateRollout(start)
        ids: dict[int, list[str]] = {DENSE: [], AGGRESSIVE: []}
        for number in range(80):
            decision = (await router.generate(session=f"s{number}")).decision
            ids[decision.tier].append(decision.decision_id)

        async def report(decision_id: str, metric: str, score: float) -> None:
            made = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, metric=metric, score=score)
            await router.inference.ReportOutcome(made)

        for number in range(16):
            await report(ids[DENSE][0], f"made up {number}", 0.5)
        for tier, score in ((DENSE, 0.9), (AGGRESSIVE, 0.7)):
            for decision_id in ids[tier][:22]:
                await report(decision_id, "exact_match", score)

        async def halted() -> str:
            return str((await router.get()).policy.rollout.halt_reason)

        print(f"sent: sixteen made-up metrics, then a dip; came: halted, {await until(halted)}", end="")


async def test_a_session_that_cannot_be_known_goes_dense(tmp_path: Path) -> None:
    with Valkey() as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            url = f"redis://{proxy.address}/0"
            async with fleet(tmp_path, redis_url=url) as (router, _):
                proxy.silent = True
                away, plain = await router.generate(session="s"), await router.generate()
                proxy.silent = False

                async def back() -> bool:
                    return bool((await router.generate(session="s")).worker_id == "a")

                await until(back)
                assert (away.worker_id, plain.worker_id) == ("d", "a")
                print(f"sent: a session while the store is away; came: {told(away)}; without one {told(plain)}", end="")


async def test_a_switch_that_another_router_throws_again_under_its_id_acts(tmp_path: Path) -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        async with fleet(tmp_path, redis_url=server.url) as (router, _):
            await throw(router)
            await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="k"))
            await store.put_override(Override("k", Scope.GLOBAL, reason="again"))
            took = await router.becomes("TIER_DENSE")
            print(f"sent: the switch off, and at once on again elsewhere; came: dense after {took:.2f} s", end="")
        await store.close()


async def test_a_dense_worker_that_prunes_answers_once(tmp_path: Path) -> None:
    liar = FakeWorker("liar", DENSE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, liar) as (router, _):
        liar.density = 0.9
        served = [(await router.generate("code", max_tier=DENSE)).worker_id for _ in range(3)]
        assert served.count("liar") <= 1
        assert (await router.generate("code", max_tier=DENSE)).worker_id == "d"
        print(f"sent: dense requests, one worker prunes; came: answers of {served}", end="")


async def test_a_count_after_the_first_message_is_not_replayed(tmp_path: Path) -> None:
    late = FakeWorker("late", AGGRESSIVE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, late) as (router, _):
        late.behaviour = fail(grpc.StatusCode.OUT_OF_RANGE, after=2)
        got: list[str] = []

        async def read() -> None:
            async for response in router.inference.Generate(make_request("y" * 120, domain="rag"), timeout=10.0):
                got.append(response.text)

        error = await failure(read())
        assert (got, error.code()) == (["x", "x"], grpc.StatusCode.ABORTED)
        print(f"sent: rag, its worker counts after two messages; came: {got}, then {error.code().name}", end="")


async def test_callers_who_share_a_request_id_are_both_answered(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (router, _):

        async def ask(tenant: str) -> str:
            request = make_request("y" * 120, domain="rag", tenant=tenant)
            request.request_id = "x"
            return "".join([response.text async for response in router.inference.Generate(request, timeout=10.0)])

        texts = await asyncio.gather(*(ask(tenant) for tenant in ("one", "two", "one")))
        assert texts == ["abc"] * 3
        print(f"sent: one request id of two tenants, three at once; came: {texts}", end="")
