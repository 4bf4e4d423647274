from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity_router.fleet import breaker as module
from sparsity_router.fleet.breaker import Breaker, RetryBudget
from sparsity_router.fleet.workers import State
from support.routers.rig import DENSE, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_it_opens_after_failures_in_a_row_only(clock: list[float]) -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failure()
    breaker.success()
    for _ in range(4):
        breaker.failure()
    assert breaker.word == "closed"
    breaker.failure()
    assert (breaker.word, breaker.allows()) == ("open", False)


def test_half_open_lets_one_through_and_always_resolves(clock: list[float]) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failure()
    clock[0] += 40
    assert breaker.word == "half_open"
    with breaker.attempt():
        assert not breaker.allows()
    # It was cancelled, say: neither good nor bad, and the next may try.
    assert breaker.allows()
    with breaker.attempt():
        breaker.failure()
    assert breaker.word == "open"
    clock[0] += 40
    for _ in range(2):
        assert breaker.allows()
        with breaker.attempt():
            breaker.success()
    assert breaker.word == "closed"


def test_only_what_began_half_open_is_a_trial(clock: list[float]) -> None:
    breaker = Breaker()
    long, trial = breaker.attempt(), breaker.attempt()
    long.__enter__()
    for _ in range(5):
        breaker.failure()
    clock[0] += 40
    # The long one goes on, and says nothing of the worker by now.
    assert breaker.allows()
    trial.__enter__()
    assert not breaker.allows()
    breaker.failure()
    clock[0] += 40
    assert breaker.allows()
    with breaker.attempt():
        trial.__exit__(None, None, None)
        long.__exit__(None, None, None)
        assert not breaker.allows()


def test_a_success_while_it_is_open_closes_nothing(clock: list[float]) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failure()
    for _ in range(2):
        breaker.success()
    assert breaker.word == "open"


def test_the_budget_is_a_share_of_the_requests(clock: list[float]) -> None:
    budget = RetryBudget(share=0.5, per_second=1.0)
    assert sum(budget.spend() for _ in range(50)) == 10
    for _ in range(6):
        budget.earn()
    assert sum(budget.spend() for _ in range(50)) == 3
    clock[0] += 4
    assert sum(budget.spend() for _ in range(50)) == 4


async def test_a_worker_that_reports_load_but_fails_requests_is_left_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 1.0)
    bad = FakeWorker("a", DENSE, model, behaviour=fail(grpc.StatusCode.INTERNAL))
    async with rig(model, bad, FakeWorker("b", DENSE, model)) as r:
        worker = next(w for w in r.fleet.workers if w.name == "a")
        for _ in range(12):
            # Every request is answered, by the peer if need be.
            assert (await r.generate("hi"))[0] == "abc"
            await until(lambda: worker.state in (State.READY, State.BROKEN))
        assert worker.state is State.BROKEN
        asked = len(bad.received)
        assert asked == module.FAILURES_TO_OPEN
        bad.behaviour = answer
        await until(lambda: worker.state is State.READY)
        for _ in range(6):
            await r.generate("hi")
        assert worker.breaker_word == "closed"
        assert len(bad.received) > asked


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_mistakes_of_callers_and_full_workers_open_nothing(model: Path, code: Any) -> None:
    async with rig(model, FakeWorker("d", DENSE, model, behaviour=fail(code))) as r:
        for _ in range(8):
            await refusal(r.generate("hi"))
            await until(lambda: r.fleet.workers[0].state is State.READY)
        assert r.fleet.workers[0].breaker_word == "closed"


async def test_retries_stop_when_the_budget_is_used_up(model: Path) -> None:
    broken = fail(grpc.StatusCode.INTERNAL)
    async with rig(model, *(FakeWorker(name, DENSE, model, behaviour=broken) for name in "abc")) as r:
        r.fleet.retries = RetryBudget(share=0.0, per_second=0.1)
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the retry budget is used up" in error.details()
