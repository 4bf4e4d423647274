from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sparsity.v1 import policy_pb2
from sparsity_router.config import RouterConfig
from sparsity_router.following.acting import KILL_SWITCH_ID
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.server import serve
from sparsity_rpc.errors import ConfigurationError, StoreError
from sparsity_rpc.status import to_error
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model

GLOBAL = policy_pb2.OVERRIDE_SCOPE_GLOBAL


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, server: Valkey) -> RouterConfig:
    return RouterConfig(
        tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", band_set="small-context", drain_seconds=0.2
    )


@pytest_asyncio.fixture
async def router(config: RouterConfig) -> AsyncIterator[Router]:
    async with running(config) as router:
        # The tiny model's context is 512, so the bands move down.
        await router.edit(bands=[(0, 1), (50, 2), (100, 3)])
        yield router


async def test_an_edit_is_seen_by_the_next_request(router: Router) -> None:
    assert await router.tier() == ("TIER_AGGRESSIVE", "REASON_LENGTH_BAND")
    answer = await router.edit(bands=[(0, 1)])
    assert await router.tier() == ("TIER_DENSE", "REASON_LENGTH_BAND")
    assert (await router.get()).etag == answer.policy.etag


async def test_a_stale_etag_is_aborted(router: Router) -> None:
    old = (await router.get()).etag
    await router.edit()
    error = await failure(router.edit(etag=old))
    assert error.code() is grpc.StatusCode.ABORTED
    assert (await failure(router.edit(etag=old, validate_only=True))).code() is grpc.StatusCode.ABORTED


async def test_validate_only_checks_and_changes_nothing(router: Router) -> None:
    before = await router.get()
    await router.edit(bands=[(0, 1)], validate_only=True)
    assert await router.get() == before
    error = to_error(await failure(router.edit(bands=[(5, 1), (5, 2)], validate_only=True)))
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
    await router.edit("code")
    second = await call.read()
    assert list(second.changed_domains) == ["code"]
    assert second.revision == first.revision + 1
    call.cancel()


async def test_garbage_in_the_store_keeps_the_last_good_policy(router: Router, server: Valkey) -> None:
    raw = server.client()
    with raw:
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


async def test_with_the_store_gone_decisions_and_the_kill_switch_go_on(router: Router, server: Valkey) -> None:
    server.stop()
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"
    error = await failure(router.edit())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    override = policy_pb2.Override(scope=GLOBAL, reason="incident 8")
    put = await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
    assert not put.stored
    assert (await router.tier()) == ("TIER_DENSE", "REASON_KILL_SWITCH")
    # What never reached the store can be ended without it; what the store has cannot.
    await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=put.override.id))
    assert (await router.tier())[0] == "TIER_AGGRESSIVE"
    error = await failure(router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id="stored")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_kill_switch_by_signal(router: Router) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    await router.becomes("TIER_DENSE")
    os.kill(os.getpid(), signal.SIGUSR2)
    await router.becomes("TIER_AGGRESSIVE")


async def test_the_kill_switch_by_signal_outlasts_a_restart_beside_the_store(
    config: RouterConfig, server: Valkey, tmp_path: Path
) -> None:
    file = tmp_path / "policies.json"
    config = replace(config, snapshot_file=file)

    async def told(router: Router) -> list[str]:
        listed = await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())
        return [override.actor for override in listed.overrides]

    async with running(config) as router:
        await router.edit(bands=[(0, 1), (50, 2), (100, 3)])
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(saved(file, {KILL_SWITCH_ID}))
    async with running(config) as router:
        # From the first answer on, and after what the store says.
        assert await router.tier() == ("TIER_DENSE", "REASON_KILL_SWITCH")
        await router.edit()
        assert (await router.tier(), await told(router)) == (("TIER_DENSE", "REASON_KILL_SWITCH"), ["signal"])
    async with running(config) as router:
        # An operator ends it too, whether or not the store is there.
        server.stop()
        await router.policy.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=KILL_SWITCH_ID))
        assert ((await router.tier())[0], await told(router)) == ("TIER_AGGRESSIVE", [])
        await until(saved(file, set()))
    async with running(config) as router:
        assert (await router.tier())[0] == "TIER_AGGRESSIVE"


def saved(file: Path, ids: set[str]) -> Any:
    async def holds() -> bool:
        with contextlib.suppress(StoreError):
            return SnapshotFile(file).load().local == ids
        return False

    return holds


async def test_an_absent_store_names_the_option(tmp_path: Path) -> None:
    config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), "redis://127.0.0.1:1/0", "127.0.0.1:0")
    with pytest.raises(ConfigurationError, match=r"--redis-url: redis://127\.0\.0\.1:1/0"):
        await serve(config)


async def test_a_missing_model_folder_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--model"):
        RouterConfig(tmp_path, ("127.0.0.1:1",), "redis://x")
    with pytest.raises(ConfigurationError, match="--redis-url: give a policy store, or a folder"):
        RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), None)
    with pytest.raises(ConfigurationError, match="--redis-wait-replicas"):
        RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), "redis+cluster://h", redis_wait_replicas=1)
    with pytest.raises(ConfigurationError, match="--worker"):
        RouterConfig(tiny_model(tmp_path), (), "redis://x")
