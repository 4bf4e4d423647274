"""What tenants are counted: what they used, once, and by every method."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.callers.admission import Callers, Charge
from sparsity_router.callers.limits import TenantLimits, TenantRates, read_rates
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import OverloadedError, RateLimitError
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker, decision_digest
from support.routers.rig import DENSE
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail

KEY = b"k" * 32
# Whom the fixture asks for until it is answered is not limited.
ONCE = "default: {{{0}}}\ntenants: {{nobody: {{requests: 9999/hour, tokens: 999999/hour}}}}"


async def counts(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """An answer of three tokens, that says so."""
    async for response in answer(worker, request, context):
        if response.HasField("completion"):
            response.completion.usage.prompt_tokens = 2
            response.completion.usage.completion_tokens = 3
        yield response


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers late, as under load, leaves a router to count alone: not what is tested here."""
    monkeypatch.setattr("sparsity_router.callers.limits._ANSWER_SECONDS", 5.0)


@asynccontextmanager
async def limited(folder: Path, limits: str, **options: Any) -> AsyncIterator[tuple[Router, FakeWorker]]:
    model = tiny_model(folder / "model")
    (folder / "limits.yaml").write_text(limits)
    (folder / "key").write_bytes(KEY)
    worker = await FakeWorker(
        "d", DENSE, model, behaviour=counts, leases=LeaseChecker(LeaseKeys(LeaseKey("", KEY)), "d", {DENSE}), **options
    ).start()
    with Valkey() as server:
        files = {"tenant_limits": folder / "limits.yaml", "lease_key_file": folder / "key"}
        config = RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", drain_seconds=0.1, **files)
        async with running(config) as router:

            async def used() -> bool:
                try:
                    await router.generate(tenant="nobody")
                except grpc.aio.AioRpcError:
                    return False
                return True

            await until(used)
            yield router, worker
    await worker.stop()


async def used_up(call: Any) -> None:
    error = await failure(call)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "used up" in error.details()


async def test_what_a_request_did_not_use_is_given_back(tmp_path: Path) -> None:
    # An answer may have 128 tokens and has 3: without correction the second request would be one too many.
    async with limited(tmp_path, "default: {tokens: 300/hour}") as (router, _):
        for _ in range(20):
            await router.generate(characters=2, tenant="t")


async def test_what_was_never_served_is_given_back_and_what_was_streamed_counts(tmp_path: Path) -> None:
    async def long(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        yield inference_pb2.GenerateResponse(text="x" * 200, token_ids=[1] * 200)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "as told")

    async with limited(tmp_path, ONCE.format("tokens: 400/hour")) as (router, worker):
        worker.behaviour = fail(grpc.StatusCode.INVALID_ARGUMENT)
        for _ in range(9):
            error = await failure(router.generate(characters=2, tenant="t"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        worker.behaviour = long
        for _ in range(2):
            assert (await failure(router.generate(characters=2, tenant="t"))).code() is grpc.StatusCode.ABORTED
            await until_serving(router)
        await used_up(router.generate(characters=2, tenant="t"))


async def until_serving(router: Router) -> None:
    """Until the worker that broke off is used again."""

    async def serves() -> bool:
        fleet: Any = fleet_pb2_grpc.FleetServiceStub(router.channel)
        return "READY" in str(await fleet.GetFleet(fleet_pb2.GetFleetRequest()))

    await until(serves)


@pytest.mark.parametrize("method", ["Explain", "ReportOutcome"])
async def test_every_method_counts(tmp_path: Path, method: str) -> None:
    request = make_request("hi", tenant="t" if method == "Explain" else None)
    report = inference_pb2.ReportOutcomeRequest(decision_id="x", score=1, metric="m")
    asked = inference_pb2.ExplainRequest(request=request) if method == "Explain" else report
    async with limited(tmp_path, ONCE.format("requests: 2/hour")) as (router, _):
        call = getattr(router.inference, method)
        for _ in range(2):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(asked)
        await used_up(call(asked))


async def test_each_answer_counts(tmp_path: Path) -> None:
    async def ask(router: Router, n: int) -> None:
        request = make_request("hi", tenant="t")
        request.n = n
        async for _ in router.inference.Generate(request):
            pass

    async with limited(tmp_path, ONCE.format("requests: 5/hour"), places=8) as (router, _):
        error = await failure(ask(router, 6))
        assert "this request counts 6: it can never be taken" in error.details()
        await ask(router, 3)
        await used_up(ask(router, 3))
        # What is explained is not answered.
        explained = make_request("hi", tenant="t")
        explained.n = 16
        await router.inference.Explain(inference_pb2.ExplainRequest(request=explained))
        await ask(router, 1)
        await used_up(ask(router, 1))


async def test_a_direct_request_that_falls_back_is_counted_once(tmp_path: Path) -> None:
    limits = (
        "default: {requests: 3/hour, tokens: 500/hour}\ntenants: {nobody: {requests: 9999/hour, tokens: 99999/hour}}"
    )
    async with limited(tmp_path, limits) as (router, worker), AsyncWireClient(router.address) as client:
        refused = 0

        async def once(own: FakeWorker, asked: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
            nonlocal refused
            if not asked.request_id.endswith(".1"):
                refused += 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not here")
            async for response in answer(own, asked, context):
                yield response

        worker.behaviour = once
        for _ in range(3):
            request = make_request("hi", tenant="t")
            text = [response.text async for response in client.generate(request, 10.0, direct=True)]
            assert "".join(text) == "abc"
        assert refused == 3
        with pytest.raises(OverloadedError, match="used up its 3 requests"):
            async for _ in client.generate(make_request("hi", tenant="t"), 10.0):
                pass


async def test_nobody_is_given_back_what_another_paid(tmp_path: Path) -> None:
    async with limited(tmp_path, ONCE.format("requests: 2/hour")) as (router, _):
        routed = await router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi", tenant="t")))
        claim = (("sparsity-fell-back", routed.decision.decision_id),)

        async def claims(tenant: str) -> None:
            async for _ in router.inference.Generate(make_request("hi", tenant=tenant), metadata=claim):
                pass

        for _ in range(2):
            await claims("thief")
        await used_up(claims("thief"))


async def test_who_falls_back_late_pays_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsity_router.callers.admission._FALL_BACK_SECONDS", 0.2)
    async with limited(tmp_path, ONCE.format("requests: 1/hour")) as (router, _):
        routed = await router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi", tenant="t")))
        claim = (("sparsity-fell-back", routed.decision.decision_id),)
        await asyncio.sleep(0.3)
        await used_up(router.inference.Generate(make_request("hi", tenant="t"), metadata=claim).read())


async def told_of() -> None:
    """Workers here tell of what they answered every 0.05 s."""
    await asyncio.sleep(0.3)


async def stream(client: AsyncWireClient) -> str:
    request = make_request("hi", tenant="t")
    return "".join([response.text async for response in client.generate(request, 10.0, direct=True)])


async def test_a_direct_stream_is_settled_by_its_workers_word(tmp_path: Path) -> None:
    # An answer may have 128 tokens and has 3, and its prompt 2: without correction the third would be one too many.
    async with limited(tmp_path, ONCE.format("tokens: 300/hour")) as (router, worker):
        async with AsyncWireClient(router.address) as client:
            for _ in range(10):
                assert await stream(client) == "abc"
                await told_of()
        assert not any(request.request_id.endswith(".1") for request in worker.received[-10:])


async def test_who_only_says_that_it_fell_back_pays_for_both(tmp_path: Path) -> None:
    """The worker tells that it answered: a caller's word would have one answer in two for nothing."""

    async def long(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        async for response in answer(worker, request, context):
            if response.HasField("completion"):
                response.completion.usage.prompt_tokens, response.completion.usage.completion_tokens = 100, 100
            yield response

    async with limited(tmp_path, ONCE.format("tokens: 1000/hour")) as (router, worker):
        worker.behaviour = long
        before = len(worker.received)

        async def cheat() -> None:
            async with AsyncWireClient(router.address) as client:
                told: list[str] = []
                async for response in client.generate(make_request("hi", tenant="t"), 10.0, direct=True):
                    if response.HasField("completion"):
                        told.append(response.completion.decision.decision_id)
            claim = (("sparsity-fell-back", told[0]),)
            async for _ in router.inference.Generate(make_request("hi", tenant="t"), metadata=claim):
                pass

        with contextlib.suppress(OverloadedError, grpc.aio.AioRpcError):
            for _ in range(9):
                await cheat()
                await told_of()
        # 1,000 tokens are five answers.
        assert 4 <= len(worker.received) - before <= 6


@pytest.mark.parametrize("late", [False, True])
async def test_what_the_worker_would_not_have_is_given_back_once(tmp_path: Path, late: bool) -> None:
    """By its word, by its client's, or by both."""
    async with limited(tmp_path, ONCE.format("tokens: 300/hour")) as (router, worker):

        async def refuses(own: FakeWorker, request: Any, context: Any) -> Any:
            if not request.request_id.endswith(".1"):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            async for response in counts(own, request, context):
                yield response

        worker.behaviour = refuses
        for _ in range(10):
            route = await router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi", tenant="t")))
            request = worker_pb2.WorkerServiceGenerateRequest.FromString(route.worker_request)
            request.lease.CopyFrom(route.lease)
            async with grpc.aio.insecure_channel(route.endpoint) as channel:
                stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
                error = await failure(stub.Generate(request).read())
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            if late:
                await told_of()
            claim = (("sparsity-fell-back", route.decision.decision_id),)
            async for _ in router.inference.Generate(make_request("hi", tenant="t"), metadata=claim):
                pass
        await told_of()
        # 50 tokens were used, and no more is there than is left.
        long = make_request("y" * 110, tenant="t")
        await router.inference.Route(inference_pb2.RouteRequest(request=long))
        await used_up(router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi", tenant="t"))))


async def test_a_route_waits_in_line_for_room(tmp_path: Path) -> None:
    release = asyncio.Event()
    limits = "default: {requests: 9999/hour}"
    async with limited(tmp_path, limits, places=1) as (router, worker):

        async def held(own: FakeWorker, asked: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
            await release.wait()
            async for response in counts(own, asked, context):
                yield response

        worker.behaviour = held
        first = asyncio.create_task(router.generate())
        before = len(worker.received)

        async def held_up() -> bool:
            return len(worker.received) > before

        await until(held_up)
        route = asyncio.ensure_future(router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi"))))
        await asyncio.sleep(0.3)
        assert not route.done()
        release.set()
        await first
        assert (await route).endpoint == worker.address


async def test_what_is_owed_is_counted_with_later_calls_and_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("default: {tokens: 100/hour}\ntenants: {u: {tokens: 100/hour}}")
    limits = TenantLimits.load(path, None)
    assert limits is not None
    limits.give_back("t", tokens=-50)
    await limits.tokens("t", 40)
    with pytest.raises(RateLimitError, match="used up"):
        await limits.tokens("t", 11)
    await limits.tokens("t", 10)
    # What is owed is never more than ten times the rate, and is paid with what a call leaves of it.
    limits.give_back("u", tokens=-(10**9))
    await limits.tokens("u", 60)
    with pytest.raises(RateLimitError, match="used up"):
        await limits.tokens("u", 1)
    limits.give_back("u", tokens=960)
    with pytest.raises(RateLimitError, match="used up"):
        await limits.tokens("u", 1)
    limits.give_back("u", tokens=1)
    await limits.tokens("u", 1)


async def test_what_is_owed_outlives_the_windows_that_it_takes_to_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed, time=time.time)
    monkeypatch.setattr("sparsity_router.callers.limits.time", clock)
    path = tmp_path / "limits.yaml"
    path.write_text("default: {tokens: 100/hour}")
    limits = TenantLimits.load(path, None)
    assert limits is not None
    # Three answers of a whole window each, that were said not to be.
    for _ in range(3):
        limits.give_back("t", tokens=-100)
    await limits.tokens("t", 10)
    passed = 3 * 3600.0
    limits.give_back("t", tokens=210)
    with pytest.raises(RateLimitError, match="used up"):
        await limits.tokens("t", 1)
    passed += 3600.0
    limits.give_back("t", tokens=1)
    await limits.tokens("t", 1)


async def test_a_credit_is_used_once_and_kept_where_the_call_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("default: {tokens: 100/hour}")
    limits = TenantLimits.load(path, None)
    assert limits is not None
    await limits.tokens("t", 90)
    limits.give_back("t", tokens=50)
    with pytest.raises(RateLimitError):
        await limits.tokens("t", 80)
    await limits.tokens("t", 60)
    with pytest.raises(RateLimitError):
        await limits.tokens("t", 1)
    # More than the whole rate is never owed.
    limits.give_back("t", tokens=10**9)
    await limits.tokens("t", 100)
    with pytest.raises(RateLimitError):
        await limits.tokens("t", 1)


def rates(folder: Path, text: str) -> TenantRates:
    path = folder / "limits.yaml"
    path.write_text(text)
    return read_rates(path)


async def test_a_tenant_that_is_shut_out_while_it_is_answered_is_given_nothing_back(tmp_path: Path) -> None:
    limits = TenantLimits(rates(tmp_path, "default: {requests: 9/hour, tokens: 100/hour}"), None)
    limits.give_back("t", requests=1, tokens=50)
    callers = Callers(None, limits)
    charge = Charge("t", 40)
    for decision_id in ("one", "other"):
        callers.routed(decision_id, charge)
    limits.adopt(rates(tmp_path, "default: {requests: 0/minute, tokens: 0/minute}"))
    # It ends as any other, whoever tells of it.
    callers.settle(charge, 10)
    callers.settle(charge, 90)
    callers.ended(decision_digest("one"), 10)
    # Nor does what it had over let it in.
    for counted in (limits.request("t"), limits.tokens("t", 10)):
        with pytest.raises(RateLimitError, match="can never be taken"):
            await counted
    limits.adopt(rates(tmp_path, "default: {tokens: 10/hour}"))
    await limits.tokens("t", 10)
    callers.ended(decision_digest("other"), 40)


async def test_what_was_over_at_a_higher_rate_is_worth_a_window_of_the_lower_one(tmp_path: Path) -> None:
    limits = TenantLimits(rates(tmp_path, "default: {tokens: 1000/hour}"), None)
    limits.give_back("t", tokens=500)
    limits.adopt(rates(tmp_path, "default: {tokens: 10/hour}"))
    with pytest.raises(RateLimitError, match="can never be taken"):
        await limits.tokens("t", 400)
