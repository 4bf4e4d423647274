"""Leases, and the direct path that they open, over fake workers that check them as real ones do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, worker_pb2
from sparsity_client.wire import AsyncWireClient, WireClient, make_request
from sparsity_policies.model import Tier
from sparsity_router.config import RouterConfig
from sparsity_router.fleet.patience import Patience
from sparsity_rpc.errors import (
    ConfigurationError,
    InvalidRequestError,
    LeaseError,
    OverloadedError,
    SparsityError,
    StreamBrokenError,
)
from sparsity_rpc.status import answer as end
from sparsity_serving.access import leases
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys, read_keys
from sparsity_serving.access.leases import LeaseChecker, sign
from support.routers.rig import until
from support.routers.router import Router, failure, running
from support.routers.router import until as eventually
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail, hang

KEY = b"a key of sixteen bytes or more"
KEYS = LeaseKeys(LeaseKey("", KEY))
DENSE, MODERATE = inference_pb2.TIER_DENSE, inference_pb2.TIER_MODERATE


def request(**fields: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    fields.setdefault("request_id", "r")
    prompt = inference_pb2.TokenIds(ids=[1, 2, 3])
    made = worker_pb2.WorkerServiceGenerateRequest(prompt=prompt, tier=DENSE, **fields)
    made.lease.CopyFrom(sign(KEYS, made, "w", "d"))
    return made


def checker(worker_id: str = "w", tier: Any = DENSE) -> LeaseChecker:
    return LeaseChecker(KEYS, worker_id, {tier})


def test_a_lease_is_good_once() -> None:
    worker, made = checker(), request()
    assert worker.redeem(made).decision_id == "d"
    with pytest.raises(LeaseError, match=r"^lease: was used before"):
        worker.redeem(made)
    worker.redeem(request())


def test_a_lease_is_good_for_one_worker_tier_and_request() -> None:
    with pytest.raises(LeaseError, match=r"^lease: is for worker w, not other"):
        checker("other").redeem(request())
    with pytest.raises(LeaseError, match=r"^lease: is for TIER_DENSE, .* not serve: it has TIER_MODERATE$"):
        checker(tier=MODERATE).redeem(request())
    for change in ("request_id", "cache_salt"):
        made = request()
        setattr(made, change, "changed")
        with pytest.raises(LeaseError, match=r"^lease: was signed for another request"):
            checker().redeem(made)
    made = request()
    made.prompt.ids.append(4)
    with pytest.raises(LeaseError, match="signed for another request"):
        checker().redeem(made)


def test_forged_leases_are_refused() -> None:
    for place in (0, -1):
        made = request()
        token = bytearray(made.lease.token)
        token[place] ^= 1
        made.lease.token = bytes(token)
        with pytest.raises(LeaseError, match=r"^lease: was not signed by a router"):
            checker().redeem(made)
    for token in (b"x", b"x" * 100):
        made = request()
        made.lease.token = token
        with pytest.raises(LeaseError, match="was not signed"):
            checker().redeem(made)
    made = request()
    made.lease.CopyFrom(sign(LeaseKeys(LeaseKey("", b"another key of the right length")), made, "w", "d"))
    with pytest.raises(LeaseError, match="was not signed"):
        checker().redeem(made)
    made.ClearField("lease")
    with pytest.raises(LeaseError, match=r"^lease: is none; this worker demands a router's"):
        checker().redeem(made)


def test_expired_leases_are_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, made = checker(), request()
    worker.redeem(made)
    now = time.time()
    monkeypatch.setattr(leases.time, "time", lambda: now + 60)
    with pytest.raises(LeaseError, match=r"^lease: expired 5\d s ago"):
        worker.redeem(made)
    worker.redeem(request())
    assert len(worker._taken) == 1


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSITY_LEASE_KEY", raising=False)
    assert LeaseKeys.load(None) is None
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_keys(tmp_path / "key") == (LeaseKey("", KEY),)
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="16 are the least"):
        read_keys(tmp_path / "key")
    with pytest.raises(ConfigurationError, match="--lease-key-file"):
        read_keys(tmp_path / "none")
    monkeypatch.setenv("SPARSITY_LEASE_KEY", KEY.decode())
    found = LeaseKeys.load(None)
    assert found is not None
    assert found.signing == LeaseKey("", KEY)


def test_a_file_may_hold_several_keys_by_their_ids(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = LeaseKey("2026-12", b"x" * 20), LeaseKey("2026-11", b"y" * 20)
    file.write_text("# changed in December\n\n2026-12: xxxxxxxxxxxxxxxxxxxx\n2026-11:  yyyyyyyyyyyyyyyyyyyy \n")
    assert read_keys(file) == (first, second)
    for text, words in (
        ("a: short\nb: yyyyyyyyyyyyyyyyyyyy", "the key 'a' has 5 bytes"),
        ("a: xxxxxxxxxxxxxxxxxxxx\nyyyyyyyyyyyyyyyyyyyy", "every line must be `ID: KEY`, as 1 of 2 are"),
        ("a: xxxxxxxxxxxxxxxxxxxx\na: yyyyyyyyyyyyyyyyyyyy", "an id of its own"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match="--lease-key-file") as caught:
            read_keys(file)
        assert words in str(caught.value)


def test_two_keys_hold_at_once_and_the_first_signs() -> None:
    old, new = LeaseKey("old", b"o" * 20), LeaseKey("new", b"n" * 20)

    def signed(*keys: LeaseKey) -> worker_pb2.WorkerServiceGenerateRequest:
        made = request()
        made.lease.CopyFrom(sign(LeaseKeys(*keys), made, "w", "d"))
        return made

    both = LeaseChecker(LeaseKeys(old, new), "w", {DENSE})
    assert both.redeem(signed(old)).key_id == "old"
    assert both.redeem(signed(new, old)).key_id == "new"
    # Names came to one side first: the secrets are what counts.
    assert both.redeem(signed(LeaseKey("", new.secret))).key_id == ""
    assert LeaseChecker(LeaseKeys(LeaseKey("", old.secret)), "w", {DENSE}).redeem(signed(old))
    last = LeaseChecker(LeaseKeys(new), "w", {DENSE})
    with pytest.raises(LeaseError, match=r"^lease: is signed with the key 'old'; this worker has new"):
        last.redeem(signed(old))
    with pytest.raises(LeaseError, match=r"^lease: was not signed by a router"):
        last.redeem(signed(LeaseKey("new", old.secret)))


@asynccontextmanager
async def rig(
    folder: Path, key: bytes | None = KEY, worker_key: bytes = KEY, patience: Patience | None = None, **worker: Any
) -> AsyncIterator[tuple[Router, FakeWorker]]:
    """A router and a dense worker that demands leases."""
    model = tiny_model(folder / "model")
    fake = FakeWorker(
        "w", DENSE, model, leases=LeaseChecker(LeaseKeys(LeaseKey("", worker_key)), "w", {DENSE}), **worker
    )
    await fake.start()
    file = None
    if key:
        file = folder / "key"
        file.write_bytes(key)
    with Valkey() as server:
        options: dict[str, Any] = {"drain_seconds": 0.1, "queue_seconds": 0.0, "lease_key_file": file}
        options |= {"patience": patience} if patience else {}
        config = RouterConfig(model, (fake.address,), server.url, "127.0.0.1:0", **options)
        async with running(config) as router:
            await asyncio.sleep(0.2)
            yield router, fake
    await fake.stop()


async def collect(client: AsyncWireClient, **options: Any) -> tuple[str, Any]:
    text, completion = "", None
    async with aclosing(client.generate(make_request("hello", domain="rag"), 10.0, **options)) as responses:
        async for response in responses:
            text += response.text
            if response.HasField("completion"):
                completion = response.completion
    return text, completion


async def test_the_direct_path_gives_what_the_relay_gives(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, worker), AsyncWireClient(router.address) as client:
        relayed_text, relayed = await collect(client)
        text, completion = await collect(client, direct=True)
        assert (text, completion.worker_id) == (relayed_text, relayed.worker_id) == ("abc", "w")
        assert completion.decision.reason == relayed.decision.reason == inference_pb2.REASON_LENGTH_BAND
        assert completion.decision.decision_id != relayed.decision.decision_id
        first, second = worker.received
        # The relay numbers its attempts; the direct request bears the decision's id.
        assert first.request_id == f"{relayed.decision.decision_id}.1"
        assert second.request_id == completion.decision.decision_id

        def blocking() -> str:
            with WireClient(router.address) as other:
                made = make_request("hello", domain="rag")
                return "".join(response.text for response in other.generate(made, 10.0, direct=True))

        assert await asyncio.to_thread(blocking) == "abc"
        assert len(worker.received) == 3


async def test_a_worker_that_refuses_the_lease_is_reached_by_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path, worker_key=b"a key that is not the router's") as (router, worker):
        async with AsyncWireClient(router.address) as client:
            with pytest.raises(SparsityError):
                await collect(client, direct=True)
        assert not worker.received


async def test_a_router_without_a_key_gives_no_leases_and_the_client_falls_back(tmp_path: Path) -> None:
    async with rig(tmp_path, key=None) as (router, worker):
        route = inference_pb2.RouteRequest(request=make_request("hello", domain="rag"))
        assert "--lease-key-file" in (await failure(router.inference.Route(route))).details()
        worker.leases = None
        async with AsyncWireClient(router.address) as client:
            assert (await collect(client, direct=True))[0] == "abc"


async def test_before_the_first_message_the_relay_takes_over_and_after_it_nothing_is_replayed(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, worker), AsyncWireClient(router.address) as client:
        worker.behaviour = fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
        with pytest.raises(OverloadedError):
            await collect(client, direct=True)
        # Once directly, once by the relay.
        assert len(worker.received) == 2
        worker.behaviour = fail(grpc.StatusCode.UNAVAILABLE, after=1)
        await asyncio.sleep(0.3)
        with pytest.raises(StreamBrokenError, match="what was sent stands"):
            await collect(client, direct=True)
        assert len(worker.received) == 3


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("behaviour", [fail(grpc.StatusCode.UNAVAILABLE), hang])
async def test_a_worker_that_died_of_a_direct_request_counts_at_the_relay(
    tmp_path: Path, blocking: bool, behaviour: Behaviour
) -> None:
    short = Patience(first=(0.3, 0.3, 0.3))
    async with rig(tmp_path, patience=short) as (router, worker), AsyncWireClient(router.address) as client:
        worker.behaviour = behaviour

        def ask() -> None:
            with WireClient(router.address) as other:
                assert [*other.generate(make_request("hello", domain="rag"), 10.0, direct=True)]

        with pytest.raises(SparsityError, match="2 workers died"):
            await (asyncio.to_thread(ask) if blocking else collect(client, direct=True))
        assert len(worker.received) == 2


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_worker_that_says_nothing_is_left_by_the_client_too(tmp_path: Path, blocking: bool) -> None:
    # Long enough for a worker that does speak, on a machine that stands still for a moment.
    short = Patience(first=(1.0, 1.0, 1.0), between=(1.0, 1.0, 1.0))
    async with rig(tmp_path, patience=short) as (router, worker), AsyncWireClient(router.address) as client:

        async def ask(text: str) -> str:
            def wait() -> str:
                with WireClient(router.address) as other:
                    made = make_request(text, domain="rag")
                    return "".join(response.text for response in other.generate(made, direct=True))

            if blocking:
                return await asyncio.to_thread(wait)
            found = ""
            # No deadline: without the router's bound it would wait for ever.
            async for response in client.generate(make_request(text, domain="rag"), direct=True):
                found += response.text
            return found

        async def mute_at_first(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
            speaks = hang if len(worker.received) == 1 else answer
            async for response in speaks(worker, request, context):
                yield response

        worker.behaviour = mute_at_first
        assert await asyncio.wait_for(ask("hello"), 20.0) == "abc"
        assert len(worker.received) == 2
        await until(lambda: worker.cancelled == 1)

        async def stalls(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
            yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
            async for response in hang(worker, request, context):
                yield response

        worker.behaviour = stalls
        with pytest.raises(StreamBrokenError, match="said nothing for 1 s"):
            await asyncio.wait_for(ask("hello"), 20.0)
        assert len(worker.received) == 3


async def refuses_a_tool(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    """As workers do in whose terms tools are part of the chat."""
    await end(context, InvalidRequestError.of("chat.tools[0].parameters", "cannot be used"))
    yield


async def test_what_a_worker_refuses_is_named_as_its_caller_has_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, worker), AsyncWireClient(router.address) as client:
        worker.behaviour = refuses_a_tool

        def blocking() -> None:
            with WireClient(router.address) as other:
                list(other.generate(make_request("hello", domain="rag"), 10.0, direct=True))

        for asked in (collect(client), collect(client, direct=True), asyncio.to_thread(blocking)):
            with pytest.raises(InvalidRequestError) as caught:
                await asked
            assert caught.value.field == "tools[0].parameters"
        assert len(worker.received) == 3


async def test_route_checks_and_decides_like_generate(tmp_path: Path) -> None:
    async with rig(tmp_path) as (router, worker):
        async with AsyncWireClient(router.address) as client:
            with pytest.raises(InvalidRequestError, match="text"):
                async for _ in client.generate(make_request(""), direct=True):
                    pass
        route = await router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi", domain="medical")))
        assert route.decision.tier == Tier.DENSE.value
        assert route.endpoint == worker.address
        worker.draining = True
        await asyncio.sleep(0.2)
        error = await failure(router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi"))))
        assert "no dense worker can be reached" in error.details()


@pytest.mark.parametrize("faulty", [True, False])
async def test_a_worker_whose_direct_answers_show_pruning_is_taken_out_by_its_own_word(
    tmp_path: Path, faulty: bool
) -> None:
    """And never by a caller's, whatever that says of its stream."""
    async with rig(tmp_path) as (router, worker), AsyncWireClient(router.address) as client:
        worker.density = 0.5 if faulty else 1.0
        assert (await collect(client, direct=True))[1].sparsity.prefill_density == worker.density

        async def is_out() -> bool:
            fleet: Any = fleet_pb2_grpc.FleetServiceStub(router.channel)
            return "UNPROVEN" in str(await fleet.GetFleet(fleet_pb2.GetFleetRequest()))

        if faulty:
            await eventually(is_out)
            error = await failure(router.inference.Route(inference_pb2.RouteRequest(request=make_request("hi"))))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return
        for claim in ((("sparsity-worker-lost", "1"),), (("sparsity-fell-back", "0" * 32),)):
            for _ in range(6):
                async for _ in router.inference.Generate(make_request("hi"), metadata=claim):
                    pass
        await asyncio.sleep(0.3)
        assert not await is_out()
        assert (await collect(client, direct=True))[0] == "abc"
