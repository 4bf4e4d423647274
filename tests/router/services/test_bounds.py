"""What one caller sends is bounded before anybody works on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.wire import signals_from_wire
from sparsity_router.callers.admission import Callers
from sparsity_router.callers.limits import TenantLimits
from sparsity_router.fleet.fleet import Admission
from sparsity_router.fleet.patience import Patience, read_seconds
from sparsity_router.prompts.lengths import Interval, LengthModel
from sparsity_router.services.inference import InferenceService
from sparsity_rpc.errors import ConfigurationError, DrainingError, InvalidRequestError
from sparsity_rpc.status import to_error
from support.routers.rig import AGGRESSIVE, DENSE, LONG, MODERATE, refusal, rig, until
from support.tiny import CONTEXT, tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, hang


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


async def fields(r: Any, request: inference_pb2.GenerateRequest) -> list[str]:
    """The fields that Generate, Route and Explain name alike."""

    async def stream() -> None:
        async for _ in r.stub.Generate(request):
            pass

    error: Any = to_error(await refusal(stream()))
    explained: Any = to_error(await refusal(r.stub.Explain(inference_pb2.ExplainRequest(request=request))))
    named = [violation.field for violation in error.violations]
    assert named == [violation.field for violation in explained.violations]
    return named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 2**31),
        ("top_k", 2**32 - 1),
        ("max_new_tokens", 0),
        ("max_new_tokens", CONTEXT + 1),
        ("max_new_tokens", 2**32 - 1),
        ("temperature", -1e-45),
        ("temperature", 2.001),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.001),
        ("top_p", float("nan")),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1025]),
    ],
)
async def test_no_sampling_field_goes_past_what_engines_take(model: Path, name: str, value: Any) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        request = make_request("hi", domain="low")
        request.sampling.MergeFrom(inference_pb2.SamplingParams(**{name: value}))
        assert await fields(r, request) == [f"sampling.{name}"]
        assert r.workers[0].received == []


async def test_a_range_is_told_in_words(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        request = make_request("hi", domain="low")
        request.sampling.top_p = 0.0
        error = await refusal(r.stub.Explain(inference_pb2.ExplainRequest(request=request)))
        assert error.details() == "sampling.top_p: must be above 0 and at most 1, not 0"


async def dies(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    await asyncio.sleep(0.1)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    yield inference_pb2.GenerateResponse()


async def leaves(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    raise DrainingError("this worker is draining")
    yield inference_pb2.GenerateResponse()


@pytest.mark.parametrize("hedge_seconds", [0.0, 0.05])
@pytest.mark.parametrize(("behaviour", "tier"), [(dies, AGGRESSIVE), (hang, DENSE)])
async def test_what_two_workers_died_of_is_not_tried_on_a_third(
    model: Path, hedge_seconds: float, behaviour: Behaviour, tier: Any
) -> None:
    fleet = [FakeWorker(f"a{n}", tier, model, behaviour=behaviour) for n in range(2)]
    # Of three workers of a tier two are looked at, one of which has less to do than the last.
    rest = [FakeWorker(name, at, model, outstanding=10**6) for name, at in {"a2": tier, "d": DENSE}.items()]
    rest = rest if tier != DENSE else rest[:1]
    admission = Admission(hedge_seconds=hedge_seconds, patience=Patience(first=(0.3, 0.3, 0.3)))
    async with rig(model, *fleet, *rest, admission=admission) as r:
        error = await refusal(r.generate(LONG, domain="low" if tier == AGGRESSIVE else "medical"))
        assert error.code() is grpc.StatusCode.ABORTED
        assert (
            "2 workers died or fell silent with this request in flight; it is not tried on another" in error.details()
        )
        assert [len(worker.received) for worker in r.workers] == [1, 1, *[0] * len(rest)]


async def test_who_died_of_it_counts_although_its_tokens_were_counted_meanwhile(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LengthModel, "bound", lambda *_: Interval(110, 150))
    codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE, *2 * [grpc.StatusCode.UNAVAILABLE]]

    async def next_one(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        await context.abort(codes.pop(0), "Socket closed")
        yield inference_pb2.GenerateResponse()

    fleet = [FakeWorker(name, tier, model, behaviour=next_one) for name, tier in
             (("a0", AGGRESSIVE), ("a1", AGGRESSIVE), ("m", MODERATE), ("d", DENSE))]  # fmt: skip
    async with rig(model, *fleet) as r:
        assert (await refusal(r.generate("y" * 120))).code() is grpc.StatusCode.ABORTED
        sent = [request.request_id.rpartition(".")[2] for worker in r.workers for request in worker.received]
        assert sorted(sent) == ["1", "2", "3"]


async def test_who_refuses_has_not_died_of_the_request(model: Path) -> None:
    fleet = [FakeWorker(f"a{n}", AGGRESSIVE, model, behaviour=leaves) for n in range(2)]
    async with rig(model, *fleet, FakeWorker("d", DENSE, model)) as r:
        assert (await r.generate(LONG))[1].worker_id == "d"


def over(**fields: Any) -> inference_pb2.GenerateRequest:
    request = make_request("hi", domain="low")
    request.MergeFrom(inference_pb2.GenerateRequest(**fields))
    return request


def declared(**fields: Any) -> inference_pb2.GenerateRequest:
    return over(context=inference_pb2.RequestContext(**fields))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (over(request_id="x" * 257), "request_id"),
        (over(priority=-5), "priority"),
        (over(priority=10), "priority"),
        (over(priority=2**31 - 1), "priority"),
        (declared(domain="x" * 257), "context.domain"),
        (declared(tenant="x" * 257), "context.tenant"),
        (declared(session="x" * 2**20), "context.session"),
        (declared(flags=["f"] * 65), "context.flags"),
        (declared(flags=["f" * 257]), "context.flags"),
        (declared(labels={f"l{n}": "v" for n in range(20_000)}), "context.labels"),
        (declared(labels={"l": "v" * 257}), "context.labels"),
        (declared(labels={"l" * 257: "v"}), "context.labels"),
        (make_request([1] * CONTEXT, domain="low"), "token_ids.ids"),
        (make_request([2**32 - 1] * 2**20, domain="low"), "token_ids.ids"),
        (
            make_request(inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user")] * 10_001)),
            "chat.messages",
        ),
    ],
)
async def test_what_comes_with_a_prompt_is_bounded(
    model: Path, request_: inference_pb2.GenerateRequest, field: str
) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        assert await fields(r, request_) == [field]
        assert r.workers[0].received == []


async def test_what_lies_at_the_bounds_is_taken(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        edges = declared(flags=["f" * 256] * 64, labels={f"{n}".ljust(256): "v" * 256 for n in range(64)})
        edges.MergeFrom(over(request_id="x" * 256, priority=9))
        assert [message async for message in r.stub.Generate(edges)]
        assert r.workers[0].received[0].priority == 9
        assert (await r.generate([1] * (CONTEXT - 1), domain="low"))[0] == "abc"


async def test_a_name_in_an_error_is_cut(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="x" * 5000, content="hi")])
        assert len((await refusal(r.generate(chat))).details()) < 200


async def test_a_tenant_claims_no_more_priority_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("default: {priority: 3}\ntenants: {vip: {priority: 9}}\n")
    callers = Callers(limits=TenantLimits.load(path, None))
    for tenant, asked, held in (("", 9, 3), ("other", 2, 2), ("vip", 9, 9)):
        request = make_request("hi", tenant=tenant)
        request.priority = asked
        await callers.count(tenant, request)
        assert request.priority == held
    for bad in ("10", "-1", "first"):
        path.write_text(f"default: {{priority: {bad}}}\n")
        with pytest.raises(ConfigurationError, match=r"default.priority: must be from 0 to 9"):
            TenantLimits.load(path, None)


def test_signals_that_are_made_up_are_bounded_too() -> None:
    for field, bad in (
        ("labels", inference_pb2.Signals(labels={str(n): "" for n in range(65)})),
        ("flags", inference_pb2.Signals(flags=["f"] * 65)),
        ("tenant", inference_pb2.Signals(tenant="x" * 257)),
    ):
        with pytest.raises(InvalidRequestError, match=rf"signals\[0\]\.{field}"):
            signals_from_wire(bad, "signals[0]", 0.0)


async def test_outcomes_are_bounded(model: Path) -> None:
    nothing: Any = SimpleNamespace()
    service = InferenceService(nothing, nothing, decisions=nothing)
    good = {"decision_id": "d", "score": 1.0, "metric": "m"}
    for field, value in (("decision_id", "x" * 257), ("metric", "x" * 257), ("labels", {"l": "v" * 257})):
        with pytest.raises(InvalidRequestError, match=rf"^{field}: "):
            await service.ReportOutcome(inference_pb2.ReportOutcomeRequest(**good | {field: value}), nothing)


SHORT = Admission(patience=Patience(first=(0.3, 0.3, 0.3), between=(0.3, 0.3, 0.3)))


async def stalls(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
    await asyncio.sleep(3600)


async def dawdles(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    async for response in answer(worker, request, context):
        await asyncio.sleep(0.2)
        yield response


async def test_a_worker_that_says_nothing_is_replaced_by_a_peer_then_a_denser_tier(model: Path) -> None:
    mute = [FakeWorker(f"a{n}", AGGRESSIVE, model, behaviour=hang) for n in range(3)]
    async with rig(model, *mute, FakeWorker("m", MODERATE, model), admission=SHORT) as r:
        _, completion = await r.generate(LONG)
        assert (completion.worker_id, completion.decision.reason) == ("m", inference_pb2.REASON_TIER_UNAVAILABLE)
        assert [len(worker.received) for worker in mute] == [1, 1, 1]
        await until(lambda: all(worker.cancelled == 1 for worker in mute))


async def test_one_that_stops_in_mid_stream_ends_the_call(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model, behaviour=stalls), admission=SHORT) as r:
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.ABORTED
        assert "said nothing for 0.3 s" in error.details()
        await until(lambda: r.workers[0].cancelled == 1)


async def test_one_that_is_slow_but_speaks_is_waited_for_and_so_is_a_slow_reader(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model, behaviour=dawdles), admission=SHORT) as r:
        text = ""
        async for response in r.stub.Generate(make_request("hi", domain="low")):
            text += response.text
            await asyncio.sleep(0.5)
        assert text == "abc"


def test_patience_is_read_by_tier() -> None:
    assert read_seconds("--x", "5") == (5.0, 5.0, 5.0)
    assert read_seconds("--x", "dense=9,aggressive=1,moderate=2.5") == (9.0, 2.5, 1.0)
    for bad in ("", "0", "-1", "inf", "nan", "x", "dense=1", "dense=1,moderate=1,aggressive=1,other=1"):
        with pytest.raises(ConfigurationError, match="--x: must be seconds"):
            read_seconds("--x", bad)
