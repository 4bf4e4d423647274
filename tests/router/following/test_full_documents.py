"""Documents so large that none of their rollout's moves can be written, as any editor may make them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import MAX_BYTES, body_of, encode, parse_policy
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Policy, Tier
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.guards import GuardMonitor, override_id
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.rollouts import keep_moving
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.following.windows import MIN_SAMPLES
from sparsity_rpc.errors import InvalidRequestError
from support.routers import router
from support.routers.rig import Policies, until
from support.stores.snapshots import stored
from support.stores.valkey import Valkey


def begun(domain: str) -> Policy:
    return parse_policy(
        {
            "domain": domain,
            "risk": "low",
            "bands": [{"from_tokens": 0, "tier": "aggressive"}],
            "guards": {"min_coverage": 0.9},
            "rollout": {"steps": [50, 100], "pauses": [1]},
        }
    )


def full(domain: str) -> Policy:
    """A document as large as the store takes, as one that was written before room was asked for."""
    policy = replace(begun(domain), description="x")
    return replace(policy, description="x" * (MAX_BYTES - len(body_of(policy)) + 1))


class Following(Policies):
    """What a router decides from, without anybody who follows."""

    def __init__(self, *policies: Policy) -> None:
        super().__init__(Snapshot.build(1, [stored(policy) for policy in policies]))
        self.overrides = Overrides(lambda: None)


@asynccontextmanager
async def job(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(work)
    yield task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_guard_caps_the_domain_whose_rollout_it_cannot_halt() -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        policies = Following(full("low"))
        monitor = GuardMonitor(cast(Any, policies), store)
        for _ in range(MIN_SAMPLES):
            monitor.coverage("low", Tier.AGGRESSIVE, inference_pb2.SparsityReport(coverage=0.1))
        await until(policies.overrides.active)
        assert [override.id for override in policies.overrides.active()] == [override_id("low")]

        async def delivered() -> bool:
            return bool((await store.read()).overrides)

        await router.until(delivered)
        await store.close()


async def test_a_rollout_that_cannot_be_moved_keeps_no_other_and_is_told_once(caplog: Any) -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        other = await store.put(begun("other"), etag="", actor="ann", reason="new")
        policies = Following(full("first"))
        policies.snapshot = Snapshot.build(1, [stored(full("first")), replace(other, update_time=0.0)])
        async with job(keep_moving(cast(Any, policies), store)) as moving:

            async def moved() -> bool:
                there = (await store.read()).policies[0].policy.rollout
                return there is not None and there.step == 1

            await router.until(moved)
            # It is tried again and again.
            await asyncio.sleep(1.2)
            assert not moving.done()
        await store.close()
    assert len([record for record in caplog.records if "rollout of first" in record.getMessage()]) == 1


async def test_a_file_larger_than_the_store_takes_is_followed_and_saved(tmp_path: Path) -> None:
    folder, file = tmp_path / "policies", tmp_path / "snapshot"
    folder.mkdir()
    large = replace(begun("large"), description="x" * (MAX_BYTES + 1000))
    (folder / "large.yaml").write_text(dump_yaml(large))
    with Valkey() as server:
        store = PolicyStore(server.url)
        await store.put(begun("large"), etag="", actor="ann", reason="new")
        follower = PolicyFollower(PolicyFolder(folder, store), 300.0, SnapshotFile(file))
        await follower.start()
        assert follower.snapshot.drifted == ("large",)
        async with job(follower.follow()):
            await until(lambda: os.path.exists(file))
        await store.close()
    assert [one.policy for one in SnapshotFile(file).contents().policies] == [large]
    with pytest.raises(InvalidRequestError, match="the store takes"):
        encode(large)
