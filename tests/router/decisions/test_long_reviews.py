"""A long prompt that is held against changed policies is read anew beside the event loop, wherever it is by then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Tier
from sparsity_router.fleet.fleet import Admission
from sparsity_router.prompts import classify, signals
from sparsity_router.prompts.classify import Classifier
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, LONG, MODERATE, Rig, rig, until
from support.stores.snapshots import snapshot
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail, hang

Readings = list[tuple[str, bool]]


class Short(IntEnum):
    """What the tests' prompts are longer than."""

    SCAN = 64
    TOKENIZER = 4


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    """What was read anew, and whether the event loop's own thread did."""
    monkeypatch.setattr(classify, "OnLoop", Short)
    found: Readings = []

    def told(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            found.append((name, threading.current_thread() is threading.main_thread()))
            return work(*arguments)

        return read

    for name in ("scan", "read_risk"):
        monkeypatch.setattr(signals, name, told(name, getattr(signals, name)))
    return found


def forbid(at: Rig) -> None:
    detection = {"literals": ["y" * 50], "flag": "abuse"}
    policy = parse_policy({"domain": "low", "risk": "low", "bands": BANDS, "detection": detection})
    at.policies.snapshot = snapshot([policy])


def flagged(completion: Any) -> bool:
    return bool(completion.worker_id == "d" and completion.decision.reason == inference_pb2.REASON_FLAGGED)


@pytest.mark.parametrize("hedged", [False, True])
async def test_for_another_attempt(tmp_path: Path, readings: Readings, hedged: bool) -> None:
    model = tiny_model(tmp_path)
    found: list[Rig] = []

    async def fails(worker: FakeWorker, request: Any, context: Any) -> Any:
        forbid(found[0])
        # A second worker is asked meanwhile, or would be.
        await asyncio.sleep(0.4 if hedged else 0.0)
        async for response in fail(grpc.StatusCode.INTERNAL)(worker, request, context):
            yield response

    workers = FakeWorker("d", DENSE, model), FakeWorker("a", AGGRESSIVE, model, behaviour=fails)
    async with rig(model, *workers, admission=Admission(0.0, hedge_seconds=0.1 if hedged else 0.0)) as at:
        found.append(at)
        assert flagged((await at.generate())[1])
    assert readings == [("scan", False), ("read_risk", False)]


@pytest.mark.parametrize("direct", [False, True])
async def test_for_who_waits_for_room(tmp_path: Path, readings: Readings, direct: bool) -> None:
    model = tiny_model(tmp_path)
    full = FakeWorker("a", AGGRESSIVE, model, behaviour=hang, places=1), FakeWorker("m", MODERATE, model, places=0)
    keys = LeaseKeys(LeaseKey("", b"k" * 32))
    async with rig(
        model, FakeWorker("d", DENSE, model), *full, admission=Admission(5.0, dense_reserve=1.0), lease_keys=keys
    ) as at:
        holding = asyncio.create_task(at.generate())
        await until(lambda: full[0].received)
        asked = inference_pb2.RouteRequest(request=make_request(LONG, domain="low"))
        waiting = asyncio.ensure_future(at.stub.Route(asked)) if direct else asyncio.create_task(at.generate())
        await until(lambda: any(at.fleet.queues.values()))
        forbid(at)
        await at.fleet.reconsider()
        if direct:
            assert (await waiting).decision.reason == inference_pb2.REASON_FLAGGED
        else:
            assert flagged((await waiting)[1])
        holding.cancel()
    assert readings == [("scan", False), ("read_risk", False)]


@pytest.mark.parametrize("direct", [False, True])
async def test_who_is_read_anew_holds_up_nobody_in_the_queue(
    tmp_path: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    model, scan, begun, go_on = tiny_model(tmp_path), signals.scan, threading.Event(), threading.Event()

    def first_slowly(*arguments: Any) -> Any:
        if not begun.is_set():
            begun.set()
            go_on.wait(30.0)
        return scan(*arguments)

    monkeypatch.setattr(signals, "scan", first_slowly)
    full, dense = FakeWorker("a", AGGRESSIVE, model, behaviour=hang, places=0), FakeWorker("d", DENSE, model, places=8)
    keys = LeaseKeys(LeaseKey("", b"k" * 32))
    async with rig(model, dense, full, admission=Admission(20.0, dense_reserve=1.0), lease_keys=keys) as at:

        def ask() -> asyncio.Future[Any]:
            asked = inference_pb2.RouteRequest(request=make_request(LONG, domain="low"))
            return asyncio.ensure_future(at.stub.Route(asked) if direct else at.generate())

        queue = at.fleet.queues[Tier.AGGRESSIVE]
        first = ask()
        await until(lambda: len(queue) == 1)
        second = ask()
        await until(lambda: len(queue) == 2)
        forbid(at)
        await until(begun.is_set)
        try:
            await asyncio.wait_for(second, 10.0)
            assert not first.done()
        finally:
            go_on.set()
        await first


async def test_for_several_answers_at_once(tmp_path: Path, readings: Readings) -> None:
    model = tiny_model(tmp_path)
    full = FakeWorker("a", AGGRESSIVE, model, behaviour=answer_and_hang, places=1)
    dense = FakeWorker("d", DENSE, model, places=8)
    async with rig(model, dense, full, admission=Admission(5.0, dense_reserve=1.0)) as at:
        request = make_request(LONG, domain="low")
        request.n = 4
        answering = asyncio.create_task(whole(at, request))
        await until(lambda: len(at.fleet.queues[Tier.AGGRESSIVE]) == 3)
        forbid(at)
        await at.fleet.reconsider()
        await until(lambda: len(dense.received) == 3)
        answering.cancel()
    assert readings == [("scan", False), ("read_risk", False)]


async def whole(at: Rig, request: Any) -> list[Any]:
    return [response async for response in at.stub.Generate(request, timeout=10.0)]


async def answer_and_hang(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
    await asyncio.sleep(3600)


async def test_for_a_change_while_it_was_classified(
    tmp_path: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = tiny_model(tmp_path), list[Rig]()
    classify_first = Classifier.classify

    async def classify_slowly(self: Classifier, *arguments: Any, **options: Any) -> Any:
        classified = await classify_first(self, *arguments, **options)
        forbid(found[0])
        return classified

    monkeypatch.setattr(Classifier, "classify", classify_slowly)
    workers = FakeWorker("d", DENSE, model), FakeWorker("a", AGGRESSIVE, model, behaviour=answer)
    async with rig(model, *workers) as at:
        found.append(at)
        assert flagged((await at.generate())[1])
    assert readings == [("scan", False), ("read_risk", False)]


async def test_what_reads_no_text_takes_no_thread(tmp_path: Path, readings: Readings) -> None:
    """A kill switch, above all."""
    model, found = tiny_model(tmp_path), list[Rig]()

    async def fails(worker: FakeWorker, request: Any, context: Any) -> Any:
        policies = found[0].policies
        policies.snapshot = policies.snapshot.with_overrides(())
        async for response in fail(grpc.StatusCode.INTERNAL)(worker, request, context):
            yield response

    workers = FakeWorker("d", DENSE, model), FakeWorker("a", AGGRESSIVE, model, behaviour=fails)
    async with rig(model, *workers) as at:
        found.append(at)
        assert (await at.generate())[1].worker_id == "d"
    assert readings == []
