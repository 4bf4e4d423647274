"""One router, several models: each has its tokenizer and its workers, and all share policies, sessions and limits."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import (
    fleet_pb2,
    fleet_pb2_grpc,
    inference_pb2,
    policy_pb2,
    policy_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from sparsity_policies.documents.document import parse_policy, to_document
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Tier
from sparsity_policies.wire import policy_to_wire
from sparsity_router.config import RouterConfig
from sparsity_rpc import tracing
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, MODERATE, refusal
from support.routers.router import running, until
from support.routers.two_models import two_models, written
from support.telemetry.tracing import Spans
from support.tiny import tiny_model, wordy_model
from support.workers.fake_stock import FakeStock
from support.workers.fake_worker import FakeWorker, fail


async def fleet_of(router: Any) -> Any:
    return await fleet_pb2_grpc.FleetServiceStub(router.channel).GetFleet(fleet_pb2.GetFleetRequest())


async def test_each_model_counts_by_its_own_tokenizer_and_answers_by_its_own_workers(tmp_path: Path) -> None:
    async with two_models(tmp_path) as both:
        assert await both.tier() == await both.tier("tiny") == AGGRESSIVE
        assert [request.tier for request in both.tiny.received] == [AGGRESSIVE] * 2
        assert not both.wordy.received
        assert await both.tier("wordy") == await both.tier("words") == MODERATE
        assert [request.tier for request in both.wordy.received] == [MODERATE] * 2
        for name, tokens, served in (("", 119, "tiny"), ("words", 60, "wordy")):
            signals = (await both.explained(name)).signals
            assert (signals.model, signals.max_tokens) == (served, tokens)
        chat = inference_pb2.GenerateRequest(model="wordy")
        chat.chat.messages.add(role="user", content="hi")
        error = await refusal(both.router.inference.Explain(inference_pb2.ExplainRequest(request=chat)))
        assert "model wordy has no chat template" in error.details()


async def test_both_doors_know_every_model_and_refuse_others_by_name(tmp_path: Path) -> None:
    async with two_models(tmp_path) as both:
        listed = (await both.session.get(f"{both.url}/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["tiny", "wordy", "words"]
        assert (await both.session.get(f"{both.url}/v1/models/words")).json()["id"] == "words"
        answer = (await both.complete("words")).json()
        assert (answer["model"], answer["sparsity"]["tier"]) == ("wordy", "moderate")
        assert (await both.complete("tiny")).json()["sparsity"]["tier"] == "aggressive"
        assert (await both.session.get(f"{both.url}/v1/models/gpt")).status_code == 404
        nameless = await both.complete("")
        assert nameless.status_code == 404
        assert "'' is not served here; tiny, wordy are" in nameless.json()["error"]["message"]
        refused = await both.complete("gpt")
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert "'gpt' is not served here; tiny, wordy are" in refused.json()["error"]["message"]
        error = await refusal(both.tier("gpt"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "model: 'gpt' is not served here; tiny, wordy are"
        assert (len(both.tiny.received), len(both.wordy.received)) == (1, 1)


async def test_a_stranger_learns_of_no_model(tmp_path: Path) -> None:
    access = tmp_path / "access.yaml"
    digest = hashlib.sha256(b"key").hexdigest()
    access.write_text(f"inference: required\nprincipals:\n- {{name: c, key_sha256: {digest}, roles: [caller]}}\n")
    async with two_models(tmp_path, access=access) as both:
        error = await refusal(both.tier("gpt"))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "tiny" not in error.details()


async def test_one_models_workers_do_not_touch_the_other(tmp_path: Path) -> None:
    async with two_models(tmp_path, worker={"places": 1}) as both:
        both.wordy.behaviour = fail(grpc.StatusCode.INTERNAL)
        for _ in range(6):
            assert (await refusal(both.tier("wordy"))).code() is not grpc.StatusCode.INVALID_ARGUMENT
        assert await both.tier("tiny") == AGGRESSIVE
        await both.wordy.stop()

        async def is_gone() -> bool:
            states = {w.served_model: w.state for w in (await fleet_of(both.router)).workers}
            return states == {
                "tiny": fleet_pb2.WORKER_STATE_READY,
                "wordy": fleet_pb2.WORKER_STATE_UNREACHABLE,
            }

        await until(is_gone)
        assert (await refusal(both.tier("wordy"))).code() is grpc.StatusCode.UNAVAILABLE
        assert await both.tier("tiny") == AGGRESSIVE
        # It could serve a request: it keeps its traffic.
        await asyncio.sleep(1.5)
        assert await both.router.health() == "SERVING"
        tiers = {(t.model, t.tier): t.ready_workers for t in (await fleet_of(both.router)).tiers}
        assert {model for model, _ in tiers} == {"tiny", "wordy"}
        assert tiers["tiny", DENSE] == 1
        assert tiers["wordy", DENSE] == 0
        await both.wordy.start()


async def test_a_router_waits_for_each_model_when_it_starts_but_not_for_ever(tmp_path: Path) -> None:
    worker = FakeWorker("t", DENSE, tiny_model(tmp_path / "tiny"))
    await worker.start()
    wordy_model(tmp_path / "wordy")
    file = written(
        tmp_path,
        tiny={"folder": "tiny", "workers": [worker.address]},
        wordy={"folder": "wordy", "workers": ["127.0.0.1:1"]},
    )
    (tmp_path / "policies").mkdir()
    config = RouterConfig(
        models=file, policy_dir=tmp_path / "policies", listen="127.0.0.1:0", worker_timeout=2.0, drain_seconds=0.1
    )
    async with running(config) as router:

        async def is_heard() -> bool:
            return any(one.state == fleet_pb2.WORKER_STATE_READY for one in (await fleet_of(router)).workers)

        began = asyncio.get_running_loop().time()
        await until(is_heard)
        if asyncio.get_running_loop().time() - began < 1.0:
            assert await router.health() == "NOT_SERVING"
        await router.ready()
    await worker.stop()


async def test_a_session_is_held_across_models(tmp_path: Path) -> None:
    async with two_models(tmp_path) as both:
        assert await both.tier("wordy", session="s") == MODERATE
        assert await both.tier("tiny", domain="high", session="s") == DENSE
        assert await both.tier("wordy", session="s") == DENSE
        assert await both.tier("wordy", session="other") == MODERATE


async def test_a_model_has_length_bands_of_its_own_where_policies_took_the_band_sets(tmp_path: Path) -> None:
    low: dict[str, Any] = {"domain": "low", "risk": "low"}
    taken = {**low, "bands": to_document(shipped_policies("small-context")[-1])["bands"]}
    kept = {**low, "domain": "kept", "bands": BANDS[:1]}
    common: dict[str, Any] = {"policies": [taken, kept], "bands": {"low": BANDS}, "band_set": "small-context"}
    async with two_models(tmp_path, **common) as both:
        assert await both.tier("wordy") == MODERATE
        assert await both.tier("tiny") == DENSE
        assert await both.tier("wordy", domain="kept") == DENSE
        explained = await both.explained("words")
        assert explained.decision.explanation == "60 prompt tokens lie in the band from 50 of model wordy"
        assert f"with {BANDS[2]['from_tokens']} prompt tokens: aggressive" in explained.alternatives


@pytest.mark.parametrize(
    ("banded", "names", "others"), [("wordy", ("wordy", "words"), ("", "tiny")), ("tiny", ("", "tiny"), ("words",))]
)
async def test_drafts_are_simulated_by_the_bands_that_requests_of_a_model_get(
    tmp_path: Path, banded: str, names: tuple[str, ...], others: tuple[str, ...]
) -> None:
    low = {"domain": "low", "risk": "low", "bands": to_document(shipped_policies("small-context")[-1])["bands"]}
    common: dict[str, Any] = {"policies": [low], "bands": {"low": BANDS}, "band_set": "small-context"}
    async with two_models(tmp_path, **common, banded=banded) as both:
        draft = policy_to_wire(parse_policy(low))

        async def simulated(*models: str) -> list[int]:
            signals = [inference_pb2.Signals(min_tokens=60, max_tokens=60, domain="low", model=name) for name in models]
            asked = policy_pb2.SimulatePolicyRequest(policy=draft, signals=signals)
            answer = await policy_pb2_grpc.PolicyServiceStub(both.router.channel).SimulatePolicy(asked)
            return [decision.before.tier for decision in answer.decisions]

        assert await simulated(*names) == [MODERATE] * len(names)
        assert await simulated(*others) == [DENSE] * len(others)
        error = await refusal(simulated("tiny", "gpt"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "signals[1].model: 'gpt' is not served here; tiny, wordy are"


async def test_a_lease_of_one_model_is_refused_by_the_others_worker(tmp_path: Path) -> None:
    key = b"a key of sixteen or more bytes"
    (tmp_path / "key").write_bytes(key)
    tiers = {Tier.DENSE, Tier.MODERATE, Tier.AGGRESSIVE}
    async with two_models(tmp_path, lease_key_file=tmp_path / "key") as both:
        for worker in (both.tiny, both.wordy):
            worker.leases = LeaseChecker(LeaseKeys(LeaseKey("", key)), worker.name, tiers)
        ids = inference_pb2.TokenIds(ids=[1] * 60)
        asked = inference_pb2.GenerateRequest(token_ids=ids, model="words")
        asked.context.domain = "low"
        route = await both.router.inference.Route(inference_pb2.RouteRequest(request=asked))
        assert route.endpoint == both.wordy.address
        assert route.decision.tier == MODERATE
        message = worker_pb2.WorkerServiceGenerateRequest.FromString(route.worker_request)
        message.lease.CopyFrom(route.lease)

        async def sent(address: str) -> str:
            async with grpc.aio.insecure_channel(address) as channel:
                answers = worker_pb2_grpc.WorkerServiceStub(channel).Generate(message)
                return "".join([answer.response.text async for answer in answers])

        error = await refusal(sent(both.tiny.address))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not both.tiny.received
        assert await sent(both.wordy.address) == "abc"


async def test_shadows_are_repeated_by_the_same_model(tmp_path: Path) -> None:
    low = {"domain": "low", "risk": "low", "bands": BANDS, "shadow": {"percent": 100}}
    async with two_models(tmp_path, policies=[low]) as both:
        assert await both.tier("wordy") == MODERATE

        async def is_repeated() -> bool:
            return len(both.wordy.received) == 2

        await until(is_repeated)
        first, again = both.wordy.received
        assert again.request_id.startswith("shadow-")
        assert (first.tier, again.tier) == (MODERATE, DENSE)
        assert not both.tiny.received


async def test_spans_and_the_request_log_name_the_model_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spans = Spans(monkeypatch)
    caplog.set_level(logging.INFO, "sparsity.router.requests")
    async with two_models(tmp_path, request_log=True) as both:
        await both.tier()
        await both.tier("words")

        async def are_told() -> bool:
            return len(spans.all("router.generate")) == 2

        await until(are_told)
    asked = [(span.attributes or {})["gen_ai.request.model"] for span in spans.all("router.generate")]
    logged = [vars(record)["model"] for record in caplog.records if record.name == "sparsity.router.requests"]
    assert asked == logged == ["tiny", "wordy"]
    monkeypatch.undo()
    tracing.forget()


async def test_a_tenants_limits_count_all_models(tmp_path: Path) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("default: {requests: 2/minute}\n")
    async with two_models(tmp_path, tenant_limits=limits) as both:
        assert await both.tier("wordy", tenant="a") == MODERATE
        assert await both.tier("tiny", tenant="a") == AGGRESSIVE
        assert (await refusal(both.tier("wordy", tenant="a"))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("told", ["tiny", "first", "elsewhere", "second", "large", "twin"])
async def test_a_worker_is_used_by_a_name_of_its_model_alone_since_others_may_have_the_same_tokenizer(
    tmp_path: Path, told: str
) -> None:
    own = FakeWorker("own", DENSE, tiny_model(tmp_path / "tiny"))
    astray = FakeWorker("astray", DENSE, tiny_model(tmp_path / "twin"), named=told)
    for worker in (own, astray):
        await worker.start()
    file = written(
        tmp_path,
        first={"folder": "tiny", "workers": [own.address]},
        second={"folder": "twin", "workers": [astray.address], "aliases": ["meta/large"]},
    )
    (tmp_path / "policies").mkdir()
    config = RouterConfig(models=file, policy_dir=tmp_path / "policies", listen="127.0.0.1:0", drain_seconds=0.1)
    async with running(config) as router:

        async def is_known() -> Any:
            known = [w for w in (await fleet_of(router)).workers if w.state != fleet_pb2.WORKER_STATE_UNREACHABLE]
            return [worker for worker in known if worker.served_model == "second"]

        (second,) = await until(is_known)
        if told in ("second", "large", "twin"):
            assert second.state == fleet_pb2.WORKER_STATE_READY
        else:
            assert second.state == fleet_pb2.WORKER_STATE_INCOMPATIBLE
            names = "large or meta/large or second or twin"
            assert second.problem == f"it says that it serves {told}, and is to serve {names} (--served-model-name)"
    for worker in (own, astray):
        await worker.stop()


@pytest.mark.parametrize(("told", "is_used"), [("tiny", True), ("large", True), ("meta/large", True), ("twin", False)])
async def test_one_model_too_is_served_by_its_own_workers_alone(tmp_path: Path, told: str, *, is_used: bool) -> None:
    """A larger one of its family has the same tokenizer; a server of stock SGLang may have its weights, too."""
    model = tiny_model(tmp_path / "tiny")
    ours, stock = FakeWorker("own", DENSE, model, named=told), FakeStock(model, named=told)
    await ours.start()
    await stock.start()
    (tmp_path / "policies").mkdir()
    config = RouterConfig(
        model,
        (ours.address, stock.address),
        served_model_names=("meta/large",),
        policy_dir=tmp_path / "policies",
        listen="127.0.0.1:0",
        drain_seconds=0.1,
    )
    async with running(config) as router:

        async def are_known() -> Any:
            found = (await fleet_of(router)).workers
            return [] if any(w.state == fleet_pb2.WORKER_STATE_UNREACHABLE for w in found) else found

        workers = await until(are_known)
        wanted = fleet_pb2.WORKER_STATE_READY if is_used else fleet_pb2.WORKER_STATE_INCOMPATIBLE
        assert [worker.state for worker in workers] == [wanted] * 2
        assert {worker.served_model for worker in workers} == {"meta/large"}
        assert all(("it says that it serves twin" in worker.problem) is not is_used for worker in workers)
    await stock.stop()
    await ours.stop()
