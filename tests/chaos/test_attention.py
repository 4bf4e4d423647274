"""Faults by which a request would get less attention than policy gives it (A1 to A10), through real routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import make_request
from sparsity_policies.matching.scan import Scanner, ScanResult
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.decisions.sessions import _key
from sparsity_router.following.windows import MIN_SAMPLES
from sparsity_router.prompts.corpus import excerpt
from support.fault_proxy import FaultProxy
from support.routers.chaos_fleet import fleet
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE
from support.routers.router import Router, failure, until
from support.stores.valkey import Valkey
from support.telling import tell
from support.tiny import tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail

pytestmark = pytest.mark.chaos


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


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.OUT_OF_RANGE], ids=["retry", "count"])
async def test_a_kill_switch_in_prefill_reaches_the_next_attempt(tmp_path: Path, code: grpc.StatusCode) -> None:
    broken = FakeWorker("broken", AGGRESSIVE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, broken) as at:
        broken.behaviour = failing(lambda: throw(at.router), code)
        completion = await at.router.generate()
        assert (completion.worker_id, len(broken.received)) == ("d", 1)
        assert not at.aggressive.received
    tell("A1", f"rag, its worker says {code.name} after the switch", told(completion), at.others)


async def test_a_kill_switch_in_prefill_changes_the_tier_that_a_shared_worker_is_asked_at(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    broken = FakeWorker("broken", MODERATE, model, tiers=(MODERATE, AGGRESSIVE))
    peer = FakeWorker("peer", DENSE, model, tiers=(DENSE, MODERATE, AGGRESSIVE), outstanding=5000)
    async with fleet(tmp_path, broken, peer, tiers="d") as at:
        broken.behaviour = failing(lambda: throw(at.router))
        completion = await at.router.generate()
        assert (completion.worker_id, completion.decision.tier) == ("peer", DENSE)
        assert [request.tier for request in broken.received].count(AGGRESSIVE) == 1
        assert [request.tier for request in peer.received] == [DENSE]
    tell("A1", "rag, the same once more at a worker that serves every tier", told(completion), at.others)


async def test_a_kill_switch_reaches_the_hedge(tmp_path: Path) -> None:
    slow = FakeWorker("slow", AGGRESSIVE, tiny_model(tmp_path / "model"))

    async def waits(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await throw(at.router)
        await asyncio.sleep(3600)
        yield inference_pb2.GenerateResponse()

    async with fleet(tmp_path, slow, hedge_seconds=0.5) as at:
        # Requests that earn the budget of a hedge.
        for _ in range(10):
            await at.router.generate("code", max_tier=DENSE)
        slow.behaviour = waits
        completion = await at.router.generate()
        assert (completion.worker_id, len(slow.received)) == ("d", 1)
        assert not at.aggressive.received
    tell("A1", "rag, its worker waits, and is hedged after the switch", told(completion), at.others)


async def test_sixteen_scans_at_once_are_all_answered(tmp_path: Path) -> None:
    text = f"{excerpt(30_000)} attorney-client privilege"
    turns = asyncio.Semaphore(16)

    async def ask(router: Router) -> Any:
        async with turns:
            request = inference_pb2.ExplainRequest(request=make_request(text))
            return await router.inference.Explain(request, timeout=60.0)

    # Who asks beside it waits for a share of the processor.
    async with fleet(tmp_path, at_most=10.0, context=100_000) as at:
        found = await asyncio.gather(*(ask(at.router) for _ in range(320)))
        assert {tuple(answer.signals.flags) for answer in found} == {("legal",)}
    tell("A2", "320 undeclared prompts of 30 KB, 16 at a time", f"{len(found)} scans, flagged legal", at.others)


async def test_a_rule_that_cannot_be_evaluated_caps(tmp_path: Path) -> None:
    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.rules.add(name="severe", when="int(labels['severity']) >= 3", tier=MODERATE)
        await at.router.edit(policy=policy)
        await at.router.becomes("TIER_MODERATE")
        completion = await at.router.generate(labels={"severity": "high"})
        assert completion.worker_id == "m"
    tell("A3", "severity high to a rule of numbers", told(completion), at.others)


async def test_no_answer_of_the_classifier_is_a_doubt_of_the_declared_too(tmp_path: Path) -> None:
    async with fleet(tmp_path, detect="declared", detect_seconds=0.0001) as at:
        completion = await at.router.generate()
        assert told(completion) == "d at REASON_CLASSIFIER_FAILED"
    tell("A4", "rag, declared, to a classifier that is not there in time", told(completion), at.others)


async def test_a_prompt_that_was_not_scanned_to_its_end_goes_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scanner.scan

    def hasty(self: Scanner, text: str | bytes | Sequence[bytes]) -> ScanResult:
        found = whole(self, text)
        return found._replace(scanned_bytes=found.scanned_bytes - 1)

    async with fleet(tmp_path) as at:
        monkeypatch.setattr(Scanner, "scan", hasty)
        completion = await at.router.generate()
        assert told(completion) == "d at REASON_SCAN_TRUNCATED"
    tell("A5", "rag to a scan that stops a byte early", told(completion), at.others)


@asynccontextmanager
async def store_behind_faults() -> AsyncIterator[tuple[Any, FaultProxy, str]]:
    """A client of a store, and the faulty network between it and a router, with its URL."""
    with Valkey() as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            yield server.client(), proxy, f"redis://{proxy.address}/0"


async def test_first_requests_of_a_session_share_what_the_store_tells(tmp_path: Path) -> None:
    async with store_behind_faults() as (store, proxy, url), fleet(tmp_path, redis_url=url) as at:
        # What another router noted of the conversation.
        store.set(_key("", "s"), 1)
        proxy.delay = 0.01
        completions = await asyncio.gather(*(at.router.generate(session="s") for _ in range(3)))
        proxy.delay = 0.0
        came = [completion.worker_id for completion in completions]
        assert came == ["d"] * 3
    tell("A6", "three at once of a session that another router held dense", came, at.others)


async def test_a_session_that_cannot_be_known_goes_dense(tmp_path: Path) -> None:
    async with store_behind_faults() as (_, proxy, url), fleet(tmp_path, redis_url=url) as at:
        proxy.silent = True
        away, plain = await at.router.generate(session="s"), await at.router.generate()
        proxy.silent = False

        async def back() -> bool:
            return bool((await at.router.generate(session="s")).worker_id == "a")

        await until(back)
        assert (away.worker_id, plain.worker_id) == ("d", "a")
    tell("A6", "a session while the store is away", f"{told(away)}; without one {told(plain)}", at.others)


async def test_a_switch_that_another_router_throws_again_under_its_id_acts(tmp_path: Path) -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        async with fleet(tmp_path, redis_url=server.url) as at:
            await throw(at.router)
            await at.router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="k"))
            await store.put_override(Override("k", Scope.GLOBAL, reason="again"))
            took = await at.router.becomes("TIER_DENSE")
        await store.close()
    tell("A7", "the switch off, and at once on again elsewhere", f"dense after {took:.2f} s", at.others)


async def caps(router: Router) -> list[str]:
    found = await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())
    return [override.id for override in found.overrides]


async def test_an_operators_end_of_a_guards_cap_stands(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def poor(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.sampling.seed == 2:
            await go.wait()
        async for response in answer(worker, request, context):
            yield response

    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.guards.min_coverage = 0.8
        await at.router.edit(policy=policy)
        at.aggressive.behaviour, at.aggressive.coverage = poor, 0.5

        async def slow() -> None:
            request = make_request("y" * 120, domain="rag")
            request.sampling.seed = 2
            assert [response async for response in at.router.inference.Generate(request, timeout=30.0)]

        async def capped() -> list[str]:
            await at.router.generate()
            return await caps(at.router)

        under_way = [asyncio.create_task(slow()) for _ in range(MIN_SAMPLES - 1)]
        (cap,) = await until(capped)
        # These end while the cap holds, and say nothing of what comes after it.
        go.set()
        await asyncio.gather(*under_way)
        await at.router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=cap))
        served = [(await at.router.generate()).worker_id for _ in range(MIN_SAMPLES // 2)]
        assert set(served) == {"a"}
        assert await caps(at.router) == []
    tell("A7", "the end of a guard's cap, then more bad answers", f"no cap for the next {len(served)}", at.others)


async def test_what_was_called_while_the_store_was_away_is_audited_by_its_time(tmp_path: Path) -> None:
    async with store_behind_faults() as (_, proxy, url), fleet(tmp_path, redis_url=url) as at:
        proxy.refusing = True
        proxy.cut()
        called = time.time()
        await throw(at.router)
        await asyncio.sleep(3.0)
        proxy.refusing = False

        async def written() -> list[Any]:
            try:
                found = await at.router.policy.ListAuditEvents(policy_pb2.ListAuditEventsRequest())
            except grpc.aio.AioRpcError:
                return []
            return [event for event in found.events if event.method == "PutOverride"]

        (event,) = await until(written, 30.0)
        late = event.time.ToNanoseconds() / 1e9 - called
        assert abs(late) < 2.0
    tell("A7", "the switch while the store is away for 3 s", f"an audit event of {late:+.2f} s", at.others)


async def test_sixteen_made_up_metrics_blind_no_guard(tmp_path: Path) -> None:
    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.guards.max_quality_dip = 0.1
        await at.router.edit(policy=policy)
        start = policy_pb2.UpdateRolloutRequest(domain="rag", action=1, rollout=policy_pb2.Rollout(steps=[50, 100]))
        await at.router.policy.UpdateRollout(start)
        ids: dict[int, list[str]] = {DENSE: [], AGGRESSIVE: []}
        for number in range(80):
            decision = (await at.router.generate(session=f"s{number}")).decision
            ids[decision.tier].append(decision.decision_id)

        async def report(decision_id: str, metric: str, score: float) -> None:
            made = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, metric=metric, score=score)
            await at.router.inference.ReportOutcome(made)

        for number in range(16):
            await report(ids[DENSE][0], f"made up {number}", 0.5)
        for tier, score in ((DENSE, 0.9), (AGGRESSIVE, 0.7)):
            for decision_id in ids[tier][:22]:
                await report(decision_id, "exact_match", score)

        async def halted() -> str:
            return str((await at.router.get()).policy.rollout.halt_reason)

        came = await until(halted)
    tell("A8", "sixteen made-up metrics, then a dip", f"halted, {came}", at.others)


async def test_a_dense_worker_that_prunes_answers_once(tmp_path: Path) -> None:
    liar = FakeWorker("liar", DENSE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, liar) as at:
        liar.density = 0.9
        served = [(await at.router.generate("code", max_tier=DENSE)).worker_id for _ in range(4)]
        assert served == ["liar", "d", "d", "d"]
    tell("A9", "dense requests, one worker prunes", f"answers of {served}", at.others)


async def test_a_count_after_the_first_message_is_not_replayed(tmp_path: Path) -> None:
    late = FakeWorker("late", AGGRESSIVE, tiny_model(tmp_path / "model"))
    async with fleet(tmp_path, late) as at:
        late.behaviour = fail(grpc.StatusCode.OUT_OF_RANGE, after=2)
        got: list[str] = []

        async def read() -> None:
            async for response in at.router.inference.Generate(make_request("y" * 120, domain="rag"), timeout=10.0):
                got.append(response.text)

        error = await failure(read())
        assert (got, error.code()) == (["x", "x"], grpc.StatusCode.ABORTED)
    tell("A10", "rag, its worker counts after two messages", f"{got}, then {error.code().name}", at.others)
