"""Faults of workers, clients and store, through real processes and a faulty network; a line each in `make chaos`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio as redis
from sparsity.v1 import inference_pb2, inference_pb2_grpc
from sparsity_bench.router import pressure
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_rpc.errors import ConflictError, DeadlineError, StreamBrokenError
from support.fault_proxy import FaultProxy
from support.routers.chaos_router import router_over, text_of
from support.routers.rig import DENSE
from support.routers.router import Router, until
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.chaos_worker import worker_process
from support.workers.fake_worker import FakeWorker, answer, hang

# In real time, on a machine that may be busy with other tests.
pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("fault", ["refusing", "garbage", "silent"])
async def test_a_worker_behind_a_broken_network_is_replaced_by_its_peer(tmp_path: Path, fault: str) -> None:
    model = tiny_model(tmp_path / "model")
    first, second = [
        await FakeWorker(name, DENSE, model, outstanding=number).start() for number, name in enumerate("ab")
    ]
    async with FaultProxy(first.address) as proxy, router_over(tmp_path, proxy.address, second.address) as router:
        setattr(proxy, fault, True)
        if fault != "silent":
            proxy.cut()
        assert await text_of(router) == "abc"
        assert [await text_of(router) for _ in range(5)] == ["abc"] * 5
        setattr(proxy, fault, False)
        proxy.cut()
    for worker in (first, second):
        await worker.stop()


@asynccontextmanager
async def killable(folder: Path) -> AsyncIterator[tuple[Router, Any, list[str]]]:
    """A router over a slow worker that is preferred, and a quick one; what the client got lies in the list."""
    model = tiny_model(folder / "model")
    quick = await FakeWorker("quick", DENSE, model, outstanding=10**6).start()
    with worker_process(model, "victim") as victim:
        async with router_over(folder, victim.address, quick.address) as router:
            yield router, victim, []
    await quick.stop()


async def begin(router: Router, got: list[str]) -> asyncio.Task[None]:
    async def read() -> None:
        async with AsyncWireClient(router.address) as client:
            async for response in client.generate(make_request("hi", domain="rag"), 15.0):
                got.append(response.text)

    return asyncio.create_task(read())


async def test_a_worker_killed_before_its_first_token_is_replaced(tmp_path: Path) -> None:
    async with killable(tmp_path) as (router, victim, got):
        reading = await begin(router, got)
        await asyncio.sleep(0.12)
        assert not got
        victim.kill()
        await reading
        assert "".join(got) == "abc"


async def test_a_worker_killed_mid_stream_ends_the_call_and_nothing_is_replayed(tmp_path: Path) -> None:
    async with killable(tmp_path) as (router, victim, got):
        reading = await begin(router, got)

        async def begun() -> bool:
            return len(got) > 3

        await until(begun)
        victim.kill()
        with pytest.raises((StreamBrokenError, ConflictError), match="what was sent stands"):
            await reading
        assert set(got) == {"x"}


async def test_a_worker_that_hangs_costs_the_callers_deadline_and_no_more(tmp_path: Path) -> None:
    worker = await FakeWorker("h", DENSE, tiny_model(tmp_path / "model")).start()
    async with router_over(tmp_path, worker.address) as router:
        worker.behaviour = hang
        with pytest.raises(DeadlineError):
            await text_of(router, timeout=0.5)

        async def freed() -> bool:
            return worker.cancelled == 1

        await until(freed, 2.0)
        worker.behaviour = answer
        assert await text_of(router) == "abc"
    await worker.stop()


async def endless(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    while True:
        yield inference_pb2.GenerateResponse(text="x" * 1000, token_ids=[1] * 8)
        await asyncio.sleep(0)


async def test_a_slow_client_holds_up_nobody_else_and_its_worker_is_throttled(tmp_path: Path) -> None:
    sent = 0

    async def counted(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        nonlocal sent
        if not request.text.text.startswith("slow"):
            async for response in answer(worker, request, context):
                yield response
            return
        async for response in endless(worker, request, context):
            sent += 1
            yield response

    worker = await FakeWorker("w", DENSE, tiny_model(tmp_path / "model"), behaviour=counted).start()
    async with router_over(tmp_path, worker.address) as router:
        stream = aiter(router.inference.Generate(make_request("slow", domain="rag")))
        await anext(stream)
        await asyncio.sleep(1.0)
        before = sent
        assert [await text_of(router) for _ in range(20)] == ["abc"] * 20
        await asyncio.sleep(0.5)
        assert sent - before < 5000, "messages pile up for a client that does not read"
        await stream.aclose()
    await worker.stop()


@pytest.mark.parametrize("phase", ["in line", "before the first token", "mid-stream"])
async def test_a_client_that_goes_frees_its_place(tmp_path: Path, phase: str) -> None:
    behaviours: dict[str, Callable[..., Any]] = {"in line": hang, "before the first token": hang, "mid-stream": endless}
    places = 1 if phase == "in line" else 4
    worker = await FakeWorker("w", DENSE, tiny_model(tmp_path / "model"), places=places).start()
    async with router_over(tmp_path, worker.address) as router:
        worker.behaviour = behaviours[phase]
        holder = await begin(router, []) if phase == "in line" else None
        await asyncio.sleep(0.2)
        got: list[str] = []
        leaving = await begin(router, got)
        await asyncio.sleep(0.4)
        assert bool(got) is (phase == "mid-stream")
        assert len(worker.received) == 2, "one to find the worker in use, one that hangs or streams"
        leaving.cancel()
        gone = time.monotonic()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        if holder is None:

            async def freed() -> bool:
                return worker.cancelled == 1

            await until(freed, 2.0)
            print(f"the worker heard of it after {(time.monotonic() - gone) * 1000:.0f} ms", end=" ")
        else:
            worker.behaviour = answer
            holder.cancel()
            assert await text_of(router) == "abc"
            assert len(worker.received) == 3, "who left the line was never sent"
    await worker.stop()


async def test_requests_go_on_while_the_store_is_slow_then_dead_then_back(tmp_path: Path) -> None:
    worker = await FakeWorker("w", DENSE, tiny_model(tmp_path / "model")).start()
    with Valkey() as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            url = f"redis://{proxy.address}/0"
            async with router_over(tmp_path, worker.address, redis_url=url) as router:
                for fault, value in (("delay", 1.0), ("silent", True), ("refusing", True)):
                    setattr(proxy, fault, value)
                    if fault == "refusing":
                        proxy.cut()
                    for session in ("", "s"):
                        request = make_request("hi", domain="rag", session=session or None)
                        stream = router.inference.Generate(request, timeout=1.0)
                        assert "".join([response.text async for response in stream]) == "abc"
                    setattr(proxy, fault, type(value)(0))
                revision = (await router.edit(reason="back")).policy.revision if await _store_answers(router) else 0
                assert revision > 0
    await worker.stop()


async def _store_answers(router: Router) -> bool:
    async def answers() -> bool:
        try:
            await router.edit(reason="is it back?")
        except grpc.aio.AioRpcError:
            return False
        return True

    return bool(await until(answers))


async def test_malformed_entries_in_the_store_leave_the_rest_in_force(tmp_path: Path) -> None:
    worker = await FakeWorker("w", DENSE, tiny_model(tmp_path / "model")).start()
    with Valkey() as server:
        async with router_over(tmp_path, worker.address, redis_url=server.url) as router:
            client = redis.Redis.from_url(server.url)
            mapping = {
                f"junk{number}": junk for number, junk in enumerate((b"", b"{", b"\xff\xfe", b"[]", b"null" * 1000))
            }
            await client.hset("{sparsity}:policies", mapping=mapping)  # type: ignore[misc, arg-type]
            for _ in range(3):
                await client.xadd("{sparsity}:events", {"nonsense": "x"})
            await client.aclose()
            assert (await router.edit("rag", [(0, 1), (50, 2)], reason="goes on")).policy.revision
            assert await text_of(router) == "abc"
            assert (await router.tier("rag"))[0] == "TIER_MODERATE"
            assert (await router.tier("junk1"))[0] == "TIER_DENSE"
    await worker.stop()


async def test_routers_restart_one_by_one_under_load_and_nobody_notices(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    with Valkey() as server, worker_process(model, "w") as worker:
        arguments = ("--redis-url", server.url, "--worker", worker.address)
        first, second = (RouterProcess(tmp_path / name, *arguments) for name in ("one", "two"))
        failed, answered, stop = [], 0, asyncio.Event()
        await asyncio.to_thread(first.__enter__)
        await asyncio.to_thread(second.__enter__)
        target = f"ipv4:{first.address},{second.address}"
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)

            async def explain() -> None:
                nonlocal answered
                request = inference_pb2.ExplainRequest(request=make_request("hi", domain="rag"))
                while not stop.is_set():
                    try:
                        await stub.Explain(request, timeout=10.0)
                        answered += 1
                    except grpc.aio.AioRpcError as error:
                        failed.append(f"{error.code().name}: {error.details()}")
                    await asyncio.sleep(0.002)

            async def generate() -> None:
                nonlocal answered
                while not stop.is_set():
                    try:
                        stream = stub.Generate(make_request("hi", domain="rag"), timeout=20.0)
                        assert "".join([response.text async for response in stream]).endswith("abc")
                        answered += 1
                    except grpc.aio.AioRpcError as error:
                        failed.append(f"stream {error.code().name}: {error.details()}")

            await asyncio.sleep(1.0)
            load = [asyncio.create_task(job()) for job in (explain, explain, generate, generate, generate)]
            for router_process in (first, second):
                await asyncio.sleep(1.0)
                await asyncio.to_thread(router_process.__exit__, None, None, None)
                await asyncio.to_thread(router_process.__enter__)
            await asyncio.sleep(1.5)
            stop.set()
            await asyncio.gather(*load)
        for router_process in (first, second):
            await asyncio.to_thread(router_process.__exit__, None, None, None)
        assert not failed, failed[:3]
        assert answered > 100


@pytest.mark.timeout(120)
async def test_three_times_overload_keeps_goodput_and_the_urgent(tmp_path: Path) -> None:
    """What is served under overload is nearly what is served at the peak, and the urgent hardly wait."""
    goodput, urgent, _ = await pressure.overload(tiny_model(tmp_path / "model"), tmp_path, 10.0)
    print(f"{goodput.value:.0f}/s of {goodput.baseline_value:.0f}/s; p99 of the urgent {urgent.value:.2f} s,"
          f" {urgent.baseline_value:.2f} s without load", end=" ")  # fmt: skip
    assert goodput.met
    assert urgent.met


async def test_a_cancel_reaches_the_worker_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    row = await pressure.cancels(tiny_model(tmp_path / "model"), tmp_path, 50)
    print(f"p99 {row.value:.3f} s", end=" ")
    assert row.met
