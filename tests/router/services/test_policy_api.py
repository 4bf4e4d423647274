"""Revisions, rollouts, simulation, outcomes, guards, access and audit, over the wire."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies.model import Tier
from sparsity_policies.storage import store as policy_store
from sparsity_policies.wire import stored_to_wire
from sparsity_router.config import RouterConfig
from sparsity_router.services.policy import documents, rollout
from sparsity_router.services.policy import revisions as policy_revisions
from sparsity_router.services.policy.service import METHODS
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_rpc.status import to_error
from sparsity_serving.access.access import Access, key_digest
from sparsity_serving.bounds import MAX_OVERRIDES
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

DENSE, MODERATE, AGGRESSIVE = 1, 2, 3
BANDS = [(0, DENSE), (50, MODERATE), (100, AGGRESSIVE)]
START, PROMOTE, PAUSE, ABORT, RESUME = range(1, 6)


@asynccontextmanager
async def rig(
    folder: Path, *, key: str = "", coverage: float = 0.95, measured: float | None = None, **config: Any
) -> AsyncIterator[Router]:
    """A router with one fake worker a tier over a Valkey of its own."""
    model = tiny_model(folder / "model")
    shares = {"coverage": coverage, "measured": measured}
    workers = [await FakeWorker(Tier(tier).word, tier, model, **shares).start() for tier in (1, 2, 3)]
    with Valkey() as server:
        targets = tuple(worker.address for worker in workers)
        common = {"listen": "127.0.0.1:0", "band_set": "small-context", "drain_seconds": 0.2}
        async with running(RouterConfig(model, targets, server.url, **common | config), key) as router:
            yield router
    for worker in workers:
        await worker.stop()


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    async with rig(tmp_path) as router:
        await router.edit(bands=BANDS)
        yield router


async def update(router: Router, action: int, domain: str = "rag", **request: Any) -> Any:
    answer = await router.policy.UpdateRollout(
        policy_pb2.UpdateRolloutRequest(domain=domain, action=action, reason="test", **request)
    )
    return answer.policy.policy.rollout


async def revisions(router: Router, domain: str = "rag", **request: Any) -> list[Any]:
    request_ = policy_pb2.ListPolicyRevisionsRequest(domain=domain, **request)
    return list((await router.policy.ListPolicyRevisions(request_)).revisions)


async def test_revisions_rollback_and_delete(router: Router) -> None:
    await router.edit(bands=[(0, DENSE)], reason="too coarse")
    newest, before, *_ = await revisions(router)
    assert (newest.reason, before.reason) == ("too coarse", "test")
    assert (await router.tier())[0] == "TIER_DENSE"
    request = policy_pb2.RollbackPolicyRequest(domain="rag", to_revision=before.revision, reason="undo")
    rolled = (await router.policy.RollbackPolicy(request)).policy
    assert rolled.revision > newest.revision
    assert rolled.reason == f"rollback to revision {before.revision}: undo"
    assert rolled.policy == before.policy
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"
    # A deleted domain is unknown, so dense; its revisions bring it back.
    await router.policy.DeletePolicy(policy_pb2.DeletePolicyRequest(domain="rag", reason="gone"))
    assert await router.tier() == ("TIER_DENSE", "REASON_UNKNOWN_DOMAIN")
    assert [stored.deleted for stored in await revisions(router)] == [True, False, False, False, False]
    await router.policy.RollbackPolicy(request)
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"


async def test_large_documents_are_converted_beside_the_loop_and_end_a_page(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()

    def of_thread(work: Any) -> Any:
        def watched(*given: Any) -> Any:
            threads.add(threading.current_thread().name.rpartition("_")[0])
            return work(*given)

        return watched

    for module in (documents, policy_revisions, rollout):
        monkeypatch.setattr(module, "stored_to_wire", of_thread(stored_to_wire))
    for name in ("encode", "open_policy"):
        monkeypatch.setattr(policy_store, name, of_thread(getattr(policy_store, name)))
    for number in range(5):
        await router.edit(reason=f"{number}")
    await router.edit(validate_only=True)
    await update(router, START, rollout=policy_pb2.Rollout(steps=[50, 100]))
    monkeypatch.setattr(documents, "_PAGE_BYTES", 1)
    monkeypatch.setattr(policy_store, "_PAGE_CHARACTERS", 1)
    monkeypatch.setattr(policy_store, "_REVISIONS_READ", 2)
    pages = []
    for method, request in (
        (router.policy.ListPolicies, policy_pb2.ListPoliciesRequest()),
        (router.policy.ListPolicyRevisions, policy_pb2.ListPolicyRevisionsRequest(domain="rag")),
    ):
        pages.append([page := await method(request)])
        while page.next_page_token:
            request.page_token = page.next_page_token
            pages[-1].append(page := await method(request))
    listed, shown = pages
    assert [len(page.policies) for page in listed] == [1] * 10
    assert [len(page.revisions) for page in shown] == [2, 2, 2, 2, 0]
    rolled = shown[0].revisions[-1].revision
    await router.policy.RollbackPolicy(policy_pb2.RollbackPolicyRequest(domain="rag", to_revision=rolled))
    # The router reads what changed in threads of its own.
    assert threads == {"policy-drafts", "policy-builds"}


@pytest.mark.parametrize("token", ["x", "9" * 19, "9" * 26, "9" * 5000, "\u00b2", "\u0663-\u0663", "-1"])
async def test_a_page_token_that_is_none_is_refused_whatever_it_is(router: Router, token: str) -> None:
    calls = [router.policy.ListPolicyRevisions(policy_pb2.ListPolicyRevisionsRequest(domain="rag", page_token=token))]
    audited = token if "-" in token else f"{token}-0"
    if len(token) != 19:
        calls.append(router.policy.ListAuditEvents(policy_pb2.ListAuditEventsRequest(page_token=audited)))
    for call in calls:
        error = await failure(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith("page_token: is not one of this service")
        assert len(error.details()) < 200


async def test_revisions_are_paged_and_missing_ones_told(router: Router) -> None:
    for number in range(7):
        await router.edit(reason=f"{number}")
    found, token = [], ""
    while True:
        request = policy_pb2.ListPolicyRevisionsRequest(domain="rag", page_size=4, page_token=token)
        page = await router.policy.ListPolicyRevisions(request)
        found += [stored.reason for stored in page.revisions]
        if not (token := page.next_page_token):
            break
    assert found == ["6", "5", "4", "3", "2", "1", "0", "test", "shipped policy"]
    assert (await failure(revisions(router, "astrology"))).code() is grpc.StatusCode.NOT_FOUND
    assert "page_token" in (await failure(revisions(router, page_token="x"))).details()
    gone = policy_pb2.RollbackPolicyRequest(domain="rag", to_revision=99999)
    assert (await failure(router.policy.RollbackPolicy(gone))).code() is grpc.StatusCode.NOT_FOUND
    stale = policy_pb2.DeletePolicyRequest(domain="rag", etag="old")
    assert (await failure(router.policy.DeletePolicy(stale))).code() is grpc.StatusCode.ABORTED
    missing = policy_pb2.DeletePolicyRequest(domain="astrology")
    assert (await failure(router.policy.DeletePolicy(missing))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_rollout_step_by_step(router: Router) -> None:
    sessions = [f"s{number}" for number in range(60)]

    async def shares() -> dict[str, int]:
        found = [(await router.tier(session=session))[0] for session in sessions]
        return {tier: found.count(tier) for tier in sorted(set(found))}

    draft = policy_pb2.Rollout(steps=[20, 60, 100], held_back=MODERATE)
    await update(router, START, rollout=draft)
    first = await shares()
    assert 2 < first["TIER_AGGRESSIVE"] < 25
    assert first.keys() == {"TIER_AGGRESSIVE", "TIER_MODERATE"}
    assert (await update(router, PAUSE)).paused
    error = to_error(await failure(update(router, PROMOTE)))
    assert isinstance(error, InvalidRequestError)
    assert "is paused at 20 percent and cannot be promoted" in str(error)
    await update(router, RESUME)
    await update(router, PROMOTE)
    assert (await shares())["TIER_AGGRESSIVE"] > first["TIER_AGGRESSIVE"]
    await update(router, PROMOTE)
    assert await shares() == {"TIER_AGGRESSIVE": 60}
    assert (await update(router, ABORT)).halt_reason == "aborted by an operator"
    assert await shares() == {"TIER_MODERATE": 60}
    reasons = [stored.reason for stored in await revisions(router)][:6]
    assert reasons[0] == "rollout abort at 0 percent: test"
    assert reasons[-1] == "rollout start at 20 percent: test"
    bad = policy_pb2.Rollout(steps=[60, 20])
    assert "rollout.steps" in (await failure(update(router, START, rollout=bad))).details()
    assert "rollout" in (await failure(update(router, PROMOTE, "code"))).details()
    assert (await failure(update(router, PROMOTE, etag="old"))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_steps_with_pauses_move_on_by_themselves(router: Router) -> None:
    await update(router, START, rollout=policy_pb2.Rollout(steps=[10, 50, 100], pauses=[1, 1]))

    async def complete() -> bool:
        return bool((await router.get()).policy.rollout.step == 2)

    await until(complete)
    reasons = [stored.reason for stored in await revisions(router)][:2]
    assert reasons == ["the pause is over: 100 percent", "the pause is over: 50 percent"]
    assert (await router.get()).actor == "rollout"


async def test_a_broken_coverage_guard_halts_the_rollout(tmp_path: Path) -> None:
    async with rig(tmp_path, coverage=0.5) as router:
        stored = await router.get()
        stored.policy.guards.min_coverage = 0.8
        await router.edit(policy=stored.policy)
        await router.edit(bands=BANDS)
        await update(router, START, rollout=policy_pb2.Rollout(steps=[50, 100]))
        served = set()
        for number in range(60):
            served.add((await router.generate(session=f"s{number}")).decision.tier)
        assert served == {DENSE, AGGRESSIVE}

        async def halted() -> bool:
            return bool((await router.get()).policy.rollout.halted)

        await until(halted)
        found = await router.get()
        assert found.actor == "guard"
        assert "coverage 0.500 of aggressive is below the guard 0.8" in found.policy.rollout.halt_reason
        assert {(await router.tier(session=f"s{n}"))[0] for n in range(20)} == {"TIER_DENSE"}


async def test_a_broken_coverage_guard_without_a_rollout_caps_the_domain(tmp_path: Path) -> None:
    async with rig(tmp_path, coverage=0.5) as router:
        await router.edit(bands=BANDS)
        for _ in range(20):
            await router.generate()
        await router.becomes("TIER_MODERATE")
        overrides = (await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides
        assert [(o.id, o.target, o.actor) for o in overrides] == [("guard-rag", "rag", "guard")]
        assert overrides[0].HasField("expire_time")
        savings = policy_pb2.GetSavingsRequest()
        savings.since.FromSeconds(3600)

        async def told() -> bool:
            rows = (await router.policy.GetSavings(savings)).domains
            return any(row.guard_tripped for row in rows if row.domain == "rag")

        await until(told)
        # The moderate tier is no better: the next twenty take it down too.
        for _ in range(20):
            await router.generate()
        await router.becomes("TIER_DENSE")
        # Nobody else sets one of that id; anybody ends it.
        theirs = policy_pb2.Override(id="guard-rag", scope=1, max_tier=2, reason="mine")
        error = to_error(await failure(router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=theirs))))
        assert isinstance(error, InvalidRequestError)
        assert [each.field for each in error.violations] == ["override.id"]
        await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="guard-rag"))
        assert not (await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides


async def test_measured_coverage_breaks_the_guard_whatever_the_estimate_says(tmp_path: Path) -> None:
    async with rig(tmp_path, coverage=0.95, measured=0.6) as router:
        await router.edit(bands=BANDS)
        for _ in range(20):
            await router.generate()
        await router.becomes("TIER_MODERATE")
        (override,) = (await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides
        assert override.reason == "measured coverage 0.600 of aggressive is below the guard 0.8"


async def test_coverage_above_the_guard_changes_nothing(router: Router) -> None:
    for _ in range(30):
        await router.generate()
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"


async def test_a_quality_dip_that_callers_report_halts_the_rollout(router: Router) -> None:
    stored = await router.get()
    stored.policy.guards.max_quality_dip = 0.1
    await router.edit(policy=stored.policy)
    await update(router, START, rollout=policy_pb2.Rollout(steps=[50, 100]))
    ids = {DENSE: [], AGGRESSIVE: []}
    for number in range(100):
        decision = (await router.generate(session=f"s{number}")).decision
        ids[decision.tier].append(decision.decision_id)
    # The last one at once: its decision need not be in the store yet.
    last = inference_pb2.ReportOutcomeRequest(decision_id=decision.decision_id, score=0.8, metric="other")
    await router.inference.ReportOutcome(last)
    for tier, score in ((DENSE, 0.9), (AGGRESSIVE, 0.7)):
        for decision_id in ids[tier][:25]:
            report = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, score=score, metric="exact_match")
            await router.inference.ReportOutcome(report)

    async def halted() -> str:
        return str((await router.get()).policy.rollout.halt_reason)

    assert "exact_match 0.700 rolled out against 0.900 held back" in await until(halted)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"score": 0.5, "metric": "m"}, "decision_id: is empty"),
        ({"decision_id": "x", "metric": "m"}, "score: must be a number from 0 to 1"),
        ({"decision_id": "x", "score": 2.0, "metric": "m"}, "score: must be a number from 0 to 1"),
        ({"decision_id": "x", "score": 0.5}, "metric: must have 1 to"),
        ({"decision_id": "x", "score": 0.5, "metric": "m"}, "is not in the decision log"),
    ],
)
async def test_bad_outcomes_are_refused(router: Router, report: dict[str, Any], words: str) -> None:
    error = await failure(router.inference.ReportOutcome(inference_pb2.ReportOutcomeRequest(**report)))
    assert words in error.details()


async def test_simulation_of_given_signals(router: Router) -> None:
    draft = (await router.get()).policy
    del draft.bands[1:]
    signals = [inference_pb2.Signals(min_tokens=n, max_tokens=n, domain="rag") for n in (10, 60, 200)]
    signals.append(inference_pb2.Signals(min_tokens=9, max_tokens=9, domain="medical"))
    request = policy_pb2.SimulatePolicyRequest(policy=draft, signals=signals)
    answer = await router.policy.SimulatePolicy(request)
    pairs = [(found.before.tier, found.after.tier) for found in answer.decisions]
    assert pairs == [(1, 1), (2, 1), (3, 1), (1, 1)]
    assert {(c.before, c.after): c.requests for c in answer.summary.changes} == {(1, 1): 2, (2, 1): 1, (3, 1): 1}
    assert answer.summary.after.flops == answer.summary.before.flops > 0
    # Nothing was written.
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"


async def test_replay_of_recent_traffic(router: Router) -> None:
    for number in range(12):
        await router.generate(characters=30 + 20 * number)
    await asyncio.sleep(0.5)
    draft = (await router.get()).policy
    del draft.bands[1:]
    request = policy_pb2.SimulatePolicyRequest(policy=draft)
    request.replay.FromSeconds(3600)
    answer = await router.policy.SimulatePolicy(request)
    changes = {(c.before, c.after): c.requests for c in answer.summary.changes}
    assert changes == {(1, 1): 1, (2, 1): 3, (3, 1): 8}
    densities = {d.tier: (d.prefill, d.requests) for d in answer.summary.densities}
    assert densities[AGGRESSIVE] == (pytest.approx(0.2), 8)
    assert not answer.decisions
    assert answer.summary.start_time.seconds > 0
    neither = policy_pb2.SimulatePolicyRequest(policy=draft)
    assert "signals: give signals, or a time" in (await failure(router.policy.SimulatePolicy(neither))).details()


async def test_savings_of_recent_traffic_and_the_guard_that_holds(router: Router) -> None:
    request = policy_pb2.GetSavingsRequest()
    assert "since: must be more than 0 seconds" in (await failure(router.policy.GetSavings(request))).details()
    request.since.FromSeconds(3600)
    for number in range(12):
        await router.generate(characters=30 + 20 * number)
    await router.generate("medical")
    await router.generate("made-up")
    await asyncio.sleep(0.5)
    rows = {row.domain: row for row in (await router.policy.GetSavings(request)).domains}
    assert set(rows) == {"rag", "medical", "default"}
    rag = rows["rag"]
    assert {one.tier: one.requests for one in rag.tiers} == {1: 1, 2: 3, 3: 8}
    assert rag.requests == 12
    assert 0 < rag.attention.flops < rag.dense.flops
    assert rows["medical"].attention == rows["medical"].dense
    assert not rows["medical"].HasField("coverage")
    assert not rag.guard_tripped
    override = policy_pb2.Override(scope=2, target="rag", max_tier=1, reason="test")
    await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
    assert not (await router.policy.GetSavings(request)).domains[2].guard_tripped


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ({"scope": 4, "target": "aggressive", "max_tier": 2}, ("TIER_MODERATE", "REASON_KILL_SWITCH")),
        ({"scope": 4, "target": "aggressive"}, ("TIER_DENSE", "REASON_KILL_SWITCH")),
        ({"scope": 4, "target": "moderate"}, ("TIER_AGGRESSIVE", "REASON_LENGTH_BAND")),
        ({"scope": 3, "target": "acme"}, ("TIER_DENSE", "REASON_KILL_SWITCH")),
        ({"scope": 2, "target": "code"}, ("TIER_AGGRESSIVE", "REASON_LENGTH_BAND")),
    ],
)
async def test_overrides_act_on_their_scope(router: Router, override: dict[str, Any], found: tuple[str, str]) -> None:
    message = policy_pb2.Override(reason="incident", **override)
    await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=message))
    assert await router.tier(tenant="acme") == found


async def test_a_document_of_thousands_of_mistakes_is_told_of_some(router: Router) -> None:
    draft = (await router.get()).policy
    draft.detection.literals.extend("a" for _ in range(5000))
    failed = await failure(router.edit(policy=draft, validate_only=True))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = to_error(failed)
    assert isinstance(error, InvalidRequestError)
    assert 1 < len(error.violations) < 100
    assert "more mistakes" in error.violations[-1].problem


async def test_bad_overrides_are_refused(router: Router) -> None:
    for override, words in (
        ({"scope": 4, "target": "dense"}, "override.target: must be moderate or aggressive"),
        ({"scope": 4, "target": "moderate", "max_tier": 2}, "override.max_tier: must be denser than moderate"),
        ({"scope": 2}, "override.target: is empty"),
        ({"scope": 1, "target": "x"}, "override.target: must be empty"),
        ({}, "override.scope: must be"),
        # It would loosen a switch that was thrown by signal.
        ({"scope": 1, "id": "signal", "max_tier": 2}, "override.id: signal is the id of the switch"),
        ({"scope": 1, "id": "guard-low", "max_tier": 2}, "override.id: begins with guard-"),
        ({"scope": 2, "id": "guard-", "target": "low"}, "override.id: begins with guard-"),
    ):
        message = policy_pb2.Override(reason="r", **override)
        error = await failure(router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=message)))
        assert words in error.details()
    request = policy_pb2.PutOverrideRequest(override=policy_pb2.Override(scope=1, reason="r"))
    request.ttl.FromSeconds(0)
    assert "ttl: must be more than 0" in (await failure(router.policy.PutOverride(request))).details()


async def test_more_overrides_than_decisions_have_time_for_are_refused(router: Router) -> None:
    async def put(name: str, **fields: Any) -> None:
        fields = {"scope": 3, "target": name} | fields
        message = policy_pb2.Override(id=name, reason="r", **fields)
        await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=message))

    for number in range(MAX_OVERRIDES):
        await put(f"o{number}")
    error = await failure(put("one more"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details().startswith("256 overrides are in force, and 256 the most: end some")
    await put("o7", max_tier=2)
    await put("everything", scope=1, target="")
    assert (await router.tier())[1] == "REASON_KILL_SWITCH"
    # Another one for everything would change nothing.
    error = await failure(put("everything again", scope=1, target=""))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="everything"))
    ends = int(time.time()) + 600
    taken = 0
    for number in range(80):
        wide = {"scope": 1, "target": "", "max_tier": 2, "expire_time": {"seconds": ends + number}}
        try:
            await put(f"longer {number}", **wide)
            taken += 1
        except grpc.aio.AioRpcError:
            continue
    assert taken == 64
    await put("everything", scope=1, target="")
    assert (await router.tier())[0] == "TIER_DENSE"
    for name in ("everything", "o8", *(f"longer {number}" for number in range(taken))):
        await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=name))
    await put("one more")


async def test_an_override_with_a_time_to_live_ends_by_itself(router: Router) -> None:
    request = policy_pb2.PutOverrideRequest(override=policy_pb2.Override(scope=1, reason="r"))
    request.ttl.FromMilliseconds(600)
    await router.policy.PutOverride(request)
    assert (await router.tier())[0] == "TIER_DENSE"
    assert await router.becomes("TIER_AGGRESSIVE") > 0.2


async def test_exemplars_of_two_domains_contradict(router: Router) -> None:
    legal = await router.get("legal")
    legal.policy.detection.exemplars.append("Is this contract void?")
    await router.edit("legal", policy=legal.policy)
    rag = await router.get()
    rag.policy.detection.exemplars.append("is this  CONTRACT void?")
    error = await failure(router.edit(policy=rag.policy))
    assert "detection.exemplars[0]: is an exemplar of legal too" in error.details()


KEYS = {"ann": "k-ann", "vic": "k-vic", "bob": "k-bob"}
ACCESS = f"""
principals:
  - {{name: vic, key_sha256: {key_digest(KEYS["vic"])}, roles: [viewer]}}
  - {{name: ann, key_sha256: {key_digest(KEYS["ann"])}, roles: [editor], domains: [rag, "support-*"]}}
  - {{name: bob, key_sha256: {key_digest(KEYS["bob"])}, roles: [breaker]}}
"""


async def test_roles_and_the_audit_log(tmp_path: Path) -> None:
    (tmp_path / "access.yaml").write_text(ACCESS)
    async with rig(tmp_path, access=tmp_path / "access.yaml") as router:

        def bearer(name: str) -> Any:
            return (("authorization", f"Bearer {KEYS.get(name, name)}"),)

        async def codes(name: str, metadata: Any = None) -> list[str]:
            override = policy_pb2.Override(id="k", scope=1, reason="r")
            calls = (
                router.policy.GetPolicy(policy_pb2.GetPolicyRequest(domain="rag"), metadata=bearer(name)),
                router.policy.DeletePolicy(policy_pb2.DeletePolicyRequest(domain="rag"), metadata=bearer(name)),
                router.policy.DeletePolicy(policy_pb2.DeletePolicyRequest(domain="legal"), metadata=bearer(name)),
                router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override), metadata=bearer(name)),
            )
            return [(await call.code()).name for call in calls]

        denied = "PERMISSION_DENIED"
        assert await codes("vic") == ["OK", denied, denied, denied]
        assert await codes("ann") == ["OK", "OK", denied, denied]
        assert await codes("bob") == ["NOT_FOUND", denied, denied, "OK"]
        assert set(await codes("stranger")) == {"UNAUTHENTICATED"}
        error = await failure(router.policy.GetPolicy(policy_pb2.GetPolicyRequest(domain="rag")))
        assert "SPARSITY_KEY" in error.details()
        await asyncio.sleep(0.5)
        request = policy_pb2.ListAuditEventsRequest()
        events = (await router.policy.ListAuditEvents(request, metadata=bearer("vic"))).events
        told = [(e.actor, e.method, e.target, e.status) for e in events]
        assert told[0] == ("unknown", "GetPolicy", "rag", "UNAUTHENTICATED")
        assert ("ann", "DeletePolicy", "rag", "OK") in told
        assert ("ann", "DeletePolicy", "legal", denied) in told
        assert ("bob", "PutOverride", "global", "OK") in told
        assert len(told) == 17


def test_every_method_of_the_service_names_its_role() -> None:
    service = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
    assert {method.name for method in service.methods} == METHODS.keys()
    assert {method.name for method in service.methods if method.server_streaming} == {
        name for name, called in METHODS.items() if called.streams
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "cannot be read"),
        ("a: 1", "must have principals, jwt and inference"),
        ("principals: [{name: a}]", "principals[0]: must have name"),
        ("principals: [{name: a, key_sha256: x, roles: [viewer]}]", "key_sha256: must be 64"),
        (f"principals: [{{name: a, key_sha256: {'a' * 64}, roles: [king]}}]", "roles: must be a list of caller"),
        (f"principals: [{{name: a, key_sha256: {'a' * 64}, roles: [viewer], domains: x}}]", "domains: must be a list"),
        (
            f"principals: [{{name: a, key_sha256: {'a' * 64}, roles: [viewer]}},"
            f" {{name: a, key_sha256: {'b' * 64}, roles: [viewer]}}]",
            "principals[1]: name and key must be its own",
        ),
    ],
)
def test_bad_access_files_name_the_entry(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "access.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="--access") as caught:
        Access.load(tmp_path / "access.yaml")
    assert words in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Access.load(tmp_path / f"none-{os.getpid()}")
