from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sparsity.errors import ConfigurationError
from sparsity.status import to_error
from sparsity.v1 import inference_pb2, inference_pb2_grpc, policy_pb2, policy_pb2_grpc
from sparsity_client import make_request
from sparsity_router.config import RouterConfig
from sparsity_router.server import serve
from support.tiny import tiny_model
from support.valkey import Valkey

GLOBAL = policy_pb2.OVERRIDE_SCOPE_GLOBAL


class Router:
    """A whole router in this process over a real Valkey."""

    def __init__(self, port: int, server: Valkey) -> None:
        self.server = server
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.policy: Any = policy_pb2_grpc.PolicyServiceStub(self.channel)
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def tier(self, domain: str = "rag", characters: int = 120) -> tuple[str, str]:
        request = inference_pb2.ExplainRequest(request=make_request("y" * characters, domain=domain))
        decision = (await self._inference.Explain(request)).decision
        return inference_pb2.Tier.Name(decision.tier), inference_pb2.Reason.Name(decision.reason)

    async def get(self, domain: str = "rag") -> Any:
        return (await self.policy.GetPolicy(policy_pb2.GetPolicyRequest(domain=domain))).policy

    async def becomes(self, tier: str, domain: str = "rag") -> float:
        started = time.monotonic()
        while (await self.tier(domain))[0] != tier:
            assert time.monotonic() - started < 10, f"it never became {tier}"
            await asyncio.sleep(0.01)
        return time.monotonic() - started


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    with Valkey() as server:
        config = RouterConfig(
            tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", "small-context", drain_seconds=0.2
        )
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(serve(config, started))
        done, _ = await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
        assert started in done
        router = Router(started.result(), server)
        # The tiny model's context is 512, so the bands move down.
        await edit(router, bands=[(0, 1), (50, 2), (100, 3)])
        yield router
        await router.channel.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await running


async def edit(router: Router, domain: str = "rag", bands: list[tuple[int, int]] | None = None, **request: Any) -> Any:
    stored = await router.get(domain)
    if bands is not None:
        del stored.policy.bands[:]
        for start, tier in bands:
            stored.policy.bands.add(from_tokens=start, tier=tier)
    request.setdefault("etag", stored.etag)
    request.setdefault("reason", "test")
    return await router.policy.PutPolicy(policy_pb2.PutPolicyRequest(policy=stored.policy, **request))


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_an_edit_is_seen_by_the_next_request(router: Router) -> None:
    assert await router.tier() == ("TIER_AGGRESSIVE", "REASON_LENGTH_BAND")
    answer = await edit(router, bands=[(0, 1)])
    assert await router.tier() == ("TIER_DENSE", "REASON_LENGTH_BAND")
    assert (await router.get()).etag == answer.policy.etag


async def test_a_stale_etag_is_aborted(router: Router) -> None:
    old = (await router.get()).etag
    await edit(router)
    error = await failure(edit(router, etag=old))
    assert error.code() is grpc.StatusCode.ABORTED
    assert (await failure(edit(router, etag=old, validate_only=True))).code() is grpc.StatusCode.ABORTED


async def test_validate_only_checks_and_changes_nothing(router: Router) -> None:
    before = await router.get()
    await edit(router, bands=[(0, 1)], validate_only=True)
    assert await router.get() == before
    error = to_error(await failure(edit(router, bands=[(5, 1), (5, 2)], validate_only=True)))
    assert {v.field for v in error.violations} == {"bands[0].from_tokens", "bands[1].from_tokens"}  # type: ignore[attr-defined]


async def test_list_pages_and_missing_policies(router: Router) -> None:
    found, token = [], ""
    while True:
        page = await router.policy.ListPolicies(policy_pb2.ListPoliciesRequest(page_size=3, page_token=token))
        found += [stored.policy.domain for stored in page.policies]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(found)
    assert len(found) == 10
    error = await failure(router.get("astrology"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "there are" in error.details()


async def test_watch_tells_the_present_state_and_each_change(router: Router) -> None:
    call = router.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest())
    first = await call.read()
    assert len(first.changed_domains) == 10
    await edit(router, "code")
    second = await call.read()
    assert list(second.changed_domains) == ["code"]
    assert second.revision == first.revision + 1
    call.cancel()


async def test_garbage_in_the_store_keeps_the_last_good_policy(router: Router) -> None:
    raw = router.server.client()
    raw.hset("{sparsity}:policies", "rag", "garbage")
    raw.incr("{sparsity}:revision")
    call = router.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest())
    while list((await call.read()).rejected_domains) != ["rag"]:
        pass
    call.cancel()
    assert await router.tier() == ("TIER_AGGRESSIVE", "REASON_LENGTH_BAND")


async def test_the_kill_switch(router: Router) -> None:
    override = policy_pb2.Override(scope=GLOBAL, reason="incident 7")
    put = await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
    assert put.stored
    assert await router.tier() == ("TIER_DENSE", "REASON_KILL_SWITCH")
    assert len((await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides) == 1
    await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=put.override.id))
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"
    error = await failure(router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error = await failure(router.policy.PutOverride(policy_pb2.PutOverrideRequest()))
    assert "override.reason" in error.details()


async def test_with_the_store_gone_decisions_and_the_kill_switch_go_on(router: Router) -> None:
    router.server.stop()
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"
    error = await failure(edit(router))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    override = policy_pb2.Override(scope=GLOBAL, reason="incident 8")
    put = await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
    assert not put.stored
    assert (await router.tier()) == ("TIER_DENSE", "REASON_KILL_SWITCH")


async def test_the_kill_switch_by_signal(router: Router) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    await router.becomes("TIER_DENSE")
    os.kill(os.getpid(), signal.SIGUSR2)
    await router.becomes("TIER_AGGRESSIVE")


async def test_an_absent_store_names_the_option(tmp_path: Path) -> None:
    config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), "redis://127.0.0.1:1/0", "127.0.0.1:0")
    with pytest.raises(ConfigurationError, match=r"--redis-url: redis://127\.0\.0\.1:1/0"):
        await serve(config)


async def test_a_missing_model_folder_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--model"):
        RouterConfig(tmp_path, ("127.0.0.1:1",), "redis://x")
    with pytest.raises(ConfigurationError, match="--worker"):
        RouterConfig(tiny_model(tmp_path), (), "redis://x")
