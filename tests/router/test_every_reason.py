"""Every reason of docs/errors.md, had of a real router or worker by whom the page says: what programs act on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sparsity.v1 import inference_pb2, inference_pb2_grpc, policy_pb2
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from sparsity_rpc import errors
from sparsity_rpc.status import to_error
from sparsity_serving.access.access import key_digest
from sparsity_worker.calls.load import Load
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.engine.sglang_engine import EngineRequest, Step
from support.routers.http_door import HttpDoor, http_door
from support.routers.rig import DENSE
from support.routers.router import failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers import echo_worker
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail, hang

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ACCESS = f"""
inference: required
principals:
  - {{name: any, key_sha256: {key_digest("any-key")}, roles: [caller]}}
  - {{name: ann, key_sha256: {key_digest("ann-key")}, roles: [viewer]}}
  - {{name: small, key_sha256: {key_digest("small-key")}, roles: [caller], tenant: small}}
"""


class Case(NamedTuple):
    """A request that both doors refuse alike: by its fields, its key, or what its worker does."""

    key: str = "any-key"
    behaviour: Behaviour = answer
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed


EITHER: Final = {
    "INVALID_REQUEST": Case(fields={"n": 99}),
    "UNAUTHENTICATED": Case(key="strange"),
    "PERMISSION_DENIED": Case(key="ann-key"),
    "OVERLOADED": Case(behaviour=fail(grpc.StatusCode.RESOURCE_EXHAUSTED)),
    "RATE_LIMIT": Case(key="small-key"),
    "UNAVAILABLE": Case(behaviour=fail(grpc.StatusCode.UNAVAILABLE)),
    "STREAM_BROKEN": Case(behaviour=fail(grpc.StatusCode.UNAVAILABLE, after=1)),
}


def told(error: grpc.aio.AioRpcError) -> str:
    """The reason in a status' ErrorInfo; empty where it has none."""
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()  # type: ignore[arg-type]
    found = [info.reason for detail in (status.details if status else ()) if detail.Unpack(info)]
    return found[0] if found else ""


async def by_grpc(door: HttpDoor, case: Case) -> str:
    request = make_request("hi", domain="low")
    request.MergeFrom(inference_pb2.GenerateRequest(**case.fields))
    call = door.router.inference.Generate(request, metadata=(("authorization", f"Bearer {case.key}"),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in call]
    assert to_error(caught.value).reason == told(caught.value)
    return told(caught.value)


async def by_http(door: HttpDoor, case: Case) -> str:
    refused = await door.chat(**case.fields, headers={"authorization": f"Bearer {case.key}"})
    return str(refused.json()["error"]["sparsity"]["reason"])


@pytest.mark.parametrize("reason", EITHER)
async def test_by_either_door(reason: str, tmp_path: Path) -> None:
    case = EITHER[reason]
    (tmp_path / "access.yaml").write_text(ACCESS)
    (tmp_path / "limits.yaml").write_text("tenants: {small: {tokens: 1/day}}")
    options: dict[str, Any] = {"access": tmp_path / "access.yaml", "tenant_limits": tmp_path / "limits.yaml"}
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=case.behaviour)
    async with http_door(tmp_path, worker, queue_seconds=0.0, **options) as door:
        assert await by_grpc(door, case) == reason

        # A worker that failed is left alone for a moment.
        async def comes() -> bool:
            return await by_http(door, case) == reason

        await until(comes)


class Broken(EchoEngine):
    """Fails on every request."""

    kind: ClassVar[type[errors.SparsityError]] = errors.EngineError

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Step]:
        raise self.kind("as told")
        yield Step([], None, 0, b"")


class Lost(Broken):
    """Ends with every request."""

    kind = errors.EngineLostError


async def of_http(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What only the HTTP door says itself."""
    worker = FakeWorker("d", DENSE, tiny_model(folder / "model"), behaviour=hang)
    async with http_door(folder, worker) as door:
        late = await door.chat(headers={"x-sparsity-timeout": "0.2"})
        unknown = await door.chat(model="another")
        monkeypatch.setattr("sparsity_router.gateway.app.declare", lambda *_: 1 / 0)
        faulty = await door.chat()
    found = {"DEADLINE": late, "ENGINE": faulty, "NOT_FOUND": unknown}
    return {reason: refused.json()["error"]["sparsity"]["reason"] for reason, refused in found.items()}


async def of_policies(folder: Path, _: object) -> dict[str, str]:
    """What a router with a store says of calls that the HTTP door does not have."""
    file = folder / "keys"
    file.write_bytes(b"k" * 32)
    with Valkey() as store:
        config = RouterConfig(
            tiny_model(folder), ("127.0.0.1:1",), store.url, "127.0.0.1:0", lease_key_file=file, drain_seconds=0.2
        )
        async with running(config) as router:
            old = (await router.get()).etag
            await router.edit()
            missing = await failure(router.get("astrology"))
            conflict = await failure(router.edit(etag=old))
            several = make_request("hi", domain="rag")
            several.n = 2
            leased = await failure(router.inference.Route(inference_pb2.RouteRequest(request=several)))
            assert to_error(leased).metadata.keys() == {"decisionId"}
            stored = (await router.get()).policy
            store.stop()
            away = await failure(router.edit(policy=stored, etag=""))
    found = {"NOT_FOUND": missing, "CONFLICT": conflict, "UNIMPLEMENTED": leased, "STORE": away}
    return {reason: told(error) for reason, error in found.items()}


async def of_a_router_without(folder: Path, _: object) -> dict[str, str]:
    """What a router says that was started without a store."""
    async with http_door(folder) as door:
        asked = policy_pb2.ListAuditEventsRequest()
        return {"CONFIGURATION": told(await failure(door.router.policy.ListAuditEvents(asked)))}


async def of_a_worker(folder: Path, _: object) -> dict[str, str]:
    """What a worker says to who comes with a lease, or should."""
    model, load, found = tiny_model(folder / "model"), Load(4), {}

    async def refused(stub: Any, **fields: Any) -> str:
        asked = echo_worker.request("hi", 4)
        asked.text.max_tokens = fields.get("most", asked.text.max_tokens)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in stub.Generate(asked)]
        return told(caught.value)

    async with echo_worker.echo(model, require_lease=True, lease_key_file=folder) as stub:
        found["LEASE"] = await refused(stub)
    async with echo_worker.echo(model, load=load, kind=Broken) as stub:
        found["TOKEN_COUNT"] = await refused(stub, most=1)
        found["ENGINE"] = await refused(stub)
    async with echo_worker.echo(model, load=load, kind=Lost) as stub:
        found["ENGINE_LOST"] = await refused(stub)
        load.drain()
        found["DRAINING"] = await refused(stub)
    return found


async def of_its_own_library(folder: Path, _: object) -> dict[str, str]:
    """What a caller's gRPC tells it without a word of ours."""
    worker = FakeWorker("d", DENSE, tiny_model(folder / "model"), behaviour=hang)
    async with http_door(folder, worker) as door:
        request, address = make_request("hi", domain="low"), door.router.address

        def waited(cancels: bool) -> str:
            with grpc.insecure_channel(address) as channel:
                call: Any = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, timeout=0.5)  # type: ignore[no-untyped-call]
                timer = threading.Timer(0.2, call.cancel)
                if cancels:
                    timer.start()
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert not told(caught.value)  # type: ignore[arg-type]
                return to_error(caught.value).reason

        return {reason: await asyncio.to_thread(waited, reason == "CANCELLED") for reason in ("DEADLINE", "CANCELLED")}


Found = Callable[[Path, Any], Awaitable[dict[str, str]]]
OTHERS: Final[dict[Found, tuple[str, tuple[str, ...]]]] = {
    of_http: ("HTTP", ("DEADLINE", "ENGINE", "NOT_FOUND")),
    of_policies: ("gRPC", ("NOT_FOUND", "CONFLICT", "UNIMPLEMENTED", "STORE")),
    of_a_router_without: ("gRPC", ("CONFIGURATION",)),
    of_a_worker: ("worker", ("LEASE", "TOKEN_COUNT", "ENGINE", "ENGINE_LOST", "DRAINING")),
    of_its_own_library: ("library", ("DEADLINE", "CANCELLED")),
}


@pytest.mark.parametrize("found", OTHERS, ids=lambda found: found.__name__)
async def test_by_one_way_alone(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, reasons = OTHERS[found]
    assert await found(tmp_path, monkeypatch) == {reason: reason for reason in reasons}


def test_the_page_says_by_whom() -> None:
    page = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| [A-Z_]+ \| \d+ \| ([^|]+) \|", PAGE))
    ways: dict[str, set[str]] = {reason: {"gRPC", "HTTP"} for reason in EITHER}
    for way, reasons in OTHERS.values():
        for reason in reasons:
            ways.setdefault(reason, set()).add(way)
    assert {reason: set(said.split(", ")) for reason, said in page.items()} == ways
