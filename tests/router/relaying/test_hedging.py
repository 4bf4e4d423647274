"""Hedging: a second worker is asked when the first says nothing, whoever speaks first serves, the other is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision, Reason, Tier
from sparsity_router.fleet.fleet import Admission
from sparsity_router.relaying.hedging import Attempt, Hedge, Responses
from support.routers.rig import DENSE, Rig, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail, hang, say_nothing

DECISION = Decision(Tier.DENSE, Reason.UNKNOWN_DOMAIN, "", "", 0, Tier.DENSE, "")
HEDGED = Admission(queue_seconds=0.0, hedge_seconds=0.15)


def after(seconds: float, then: Behaviour) -> Behaviour:
    """A worker that waits before it behaves."""

    async def behave(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(seconds)
        async for response in then(worker, request, context):
            yield response

    return behave


async def ask(at: Rig) -> tuple[str, str]:
    text, completion = await at.generate("hi", domain="unknown")
    return text, completion.worker_id


def both(folder: Path, **behaviours: Behaviour) -> list[FakeWorker]:
    """Workers of one tier; the first by name is asked first."""
    model = tiny_model(folder)
    return [FakeWorker(name, DENSE, model, behaviour=behave) for name, behave in behaviours.items()]


async def test_a_slow_worker_loses_to_the_second_and_is_let_go(tmp_path: Path) -> None:
    slow, quick = both(tmp_path, a=hang, b=answer)
    async with rig(tmp_path, slow, quick, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "b")
        await until(lambda: slow.cancelled == 1)
        assert [len(worker.received) for worker in (slow, quick)] == [1, 1]
        assert slow.received[0].request_id != quick.received[0].request_id


async def test_nobody_else_is_asked_while_the_first_is_quick(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=answer, b=answer)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "a")
        await asyncio.sleep(0.3)
        assert not second.received


async def test_the_first_may_still_win(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=after(0.4, answer), b=hang)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "a")
        await until(lambda: second.cancelled == 1)


async def test_one_that_fails_meanwhile_is_judged_and_the_other_serves(tmp_path: Path) -> None:
    broken = after(0.3, fail(grpc.StatusCode.UNAVAILABLE))
    first, second = both(tmp_path, a=broken, b=after(0.5, answer))
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "b")
        states = {worker.name: worker.breakers[Tier.DENSE]._failures for worker in at.fleet.workers}
        assert states == {"a": 1, "b": 0}


async def test_one_that_ends_without_a_word_is_judged_too(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=after(0.3, say_nothing), b=after(0.5, answer))
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "b")
        assert {worker.name: worker.breakers[Tier.DENSE]._failures for worker in at.fleet.workers} == {"a": 1, "b": 0}


async def test_where_both_fail_the_caller_is_told(tmp_path: Path) -> None:
    down = after(0.3, fail(grpc.StatusCode.UNAVAILABLE))
    first, second = both(tmp_path, a=down, b=down)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        error = await refusal(at.generate("hi", domain="unknown"))
        assert error.code() is grpc.StatusCode.ABORTED
        assert len(first.received) == len(second.received) == 1


async def test_an_invalid_request_ends_the_race(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=after(0.3, fail(grpc.StatusCode.INVALID_ARGUMENT)), b=hang)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        error = await refusal(at.generate("hi", domain="unknown"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: second.cancelled == 1)
        assert all(not worker.breakers[Tier.DENSE]._failures for worker in at.fleet.workers)


async def test_a_client_that_goes_ends_both(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=hang, b=hang)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        asking = asyncio.create_task(at.generate("hi", domain="unknown"))
        await until(lambda: bool(second.received))
        asking.cancel()
        await until(lambda: first.cancelled == second.cancelled == 1)


async def test_hedges_keep_to_the_retry_budget(tmp_path: Path) -> None:
    first, second = both(tmp_path, a=after(0.4, answer), b=answer)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        while at.fleet.retries.spend():
            pass
        at.fleet.retries.spend = lambda: False  # type: ignore[method-assign]
        assert await ask(at) == ("abc", "a")
        assert not second.received


async def test_a_race_under_tracing_leaves_no_context_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("sparsity_rpc.tracing._off", lambda: False)
    for module in ("relaying.dispatch", "decisions.decider", "services.inference"):
        monkeypatch.setattr(f"sparsity_router.{module}._tracer", provider.get_tracer("test"))
    first, second = both(tmp_path, a=after(0.5, answer), b=answer)
    async with rig(tmp_path, first, second, admission=HEDGED) as at:
        assert await ask(at) == ("abc", "b")
        await until(lambda: first.cancelled == 1)
    assert "Failed to detach context" not in caplog.text
    named = {span.name: span for span in spans.get_finished_spans()}
    asked = [span for span in spans.get_finished_spans() if span.name == "router.dispatch"]
    assert len(asked) == 2
    assert {span.parent.span_id for span in asked} == {named["router.generate"].context.span_id}


async def test_who_is_cancelled_while_a_loser_ends_is_cancelled() -> None:
    """A cancel that comes while the loser is let go is its reader's, and no message more is given."""
    worker: Any = None
    reading: asyncio.Task[None]

    async def hangs() -> Responses:
        try:
            await asyncio.Event().wait()
        finally:
            reading.cancel()
            # Ended on its own, as a call to a worker is.
            await asyncio.sleep(0)
        yield inference_pb2.GenerateResponse()

    async def speaks() -> Responses:
        for text in "ab":
            yield inference_pb2.GenerateResponse(text=text)

    first, second = (Attempt(worker, stream, DECISION, DECISION) for stream in (hangs(), speaks()))
    hedge = Hedge(first, lambda: second, 0.0, lambda *_: None)
    read: list[str] = []

    async def all_of_it() -> None:
        async with aclosing(hedge.responses()) as responses:
            read.extend([response.text async for response in responses])

    reading = asyncio.create_task(all_of_it())
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert read == []
