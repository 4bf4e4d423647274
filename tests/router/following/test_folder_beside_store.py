"""A folder of policies beside a store that goes away: its overrides, and how old they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.contents import Contents
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.following import snapshot_file
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.own import Own
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_rpc.errors import ConfigurationError, StoreError
from sparsity_serving.background.ending import end_tasks
from support.routers.router import running, until
from support.stores.redis_server import RedisServer
from support.tiny import tiny_model

RAG = next(policy for policy in shipped_policies("small-context") if policy.domain == "rag")
KILL = Override("k", Scope.GLOBAL, reason="incident")


class Place:
    """A folder, a store with a kill switch beside it, and a snapshot file."""

    def __init__(self, path: Path, server: RedisServer) -> None:
        self.path, self.server, self.file = path, server, SnapshotFile(path / "snapshot.json")
        self.folder = path / "policies"
        self.folder.mkdir()
        self.write("git")
        self.store = PolicyStore(server.url)

    def write(self, owner: str) -> None:
        (self.folder / "rag.yaml").write_text(dump_yaml(replace(RAG, owner=owner)))

    def follower(self) -> PolicyFollower:
        return PolicyFollower(PolicyFolder(self.folder, self.store), 300.0, self.file)

    async def saved(self) -> PolicyFollower:
        """A follower that read everything and wrote it to the file."""
        follower = self.follower()
        await follower.start()
        await self.followed(follower)
        return follower

    async def followed(self, follower: PolicyFollower) -> None:
        """Has a follower follow until what it decides from is in the file."""
        before = follower.saving._kept().version

        async def kept() -> bool:
            return follower.saving._saved >= before

        following = asyncio.create_task(follower.follow())
        await until(kept)
        await end_tasks([following])


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    with RedisServer(tmp_path / "redis", "--appendonly", "yes") as server:
        place = Place(tmp_path, server)
        await place.store.put_override(KILL)
        yield place
        await place.store.close()


def acting(follower: PolicyFollower) -> list[str]:
    return [override.id for override in follower.snapshot.overrides]


def kept(place: Place) -> list[str]:
    saved = place.file.load()
    return [override.id for override in saved.handed_over] + [own.override.id for own in saved.own]


async def test_a_stores_kill_switch_outlasts_a_restart_while_the_store_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_file, "_TOUCH_SECONDS", 0.0)
    before = await place.saved()
    before.overrides.put(replace(KILL, id="local"))
    await place.followed(before)
    place.server.kill()
    os.utime(place.path / "snapshot.json", (time.time() - 100.0, time.time() - 100.0))
    # The files are the source of truth all the same.
    place.write("edited")
    after = place.follower()
    await after.start()
    assert sorted(acting(after)) == ["k", "local"]
    assert [own.override for own in after.overrides.local()] == [replace(KILL, id="local")]
    assert after.snapshot.policies["rag"].stored.policy.owner == "edited"
    assert after.age >= 90.0
    await place.followed(after)
    # Nor does a look at the files alone make it current.
    following = asyncio.create_task(after.follow())
    await asyncio.sleep(1.5)
    await end_tasks([following])
    assert sorted(kept(place)) == ["k", "local"]
    assert place.file.load().age >= 90.0
    # Once the store is back its word holds, whatever it was.
    await asyncio.to_thread(place.server.start)
    await place.store.delete_override("k")
    await after.refresh()
    assert acting(after) == ["local"]
    assert after.age < 90.0


async def test_a_file_that_is_broken_at_a_restart_is_held_at_what_was_saved(place: Place) -> None:
    await place.saved()
    place.server.kill()
    (place.folder / "rag.yaml").write_text("domain: rag\nrisk: huge\n")
    after = place.follower()
    await after.start()
    assert after.snapshot.rejected == ("rag",)
    assert after.snapshot.policies["rag"].stored.policy.owner == "git"


async def test_without_store_and_file_nobody_knows_what_is_switched_off(place: Place) -> None:
    place.server.kill()
    with pytest.raises(StoreError):
        await PolicyFollower(PolicyFolder(place.folder, place.store), 300.0).start()
    with pytest.raises(StoreError, match="--snapshot-file"):
        await place.follower().start()
    options: dict[str, Any] = {"policy_dir": place.folder, "drain_seconds": 0.1}
    model = tiny_model(place.path)
    with pytest.raises(ConfigurationError, match="--redis-url"):
        async with running(RouterConfig(model, ("127.0.0.1:1",), place.server.url, "127.0.0.1:0", **options)):
            pass
    # One that has no store knows of none.
    alone = PolicyFollower(PolicyFolder(place.folder), 300.0, place.file)
    await alone.start()
    assert acting(alone) == []


async def test_policies_are_as_old_as_the_stores_last_word(place: Place) -> None:
    follower = await place.saved()
    place.server.kill()
    since = time.monotonic()
    await follower.refresh()
    away = time.monotonic() - since
    assert follower.age >= away
    # An edit is taken up, and says nothing of the store.
    place.write("edited")
    await follower.refresh()
    assert follower.snapshot.policies["rag"].stored.policy.owner == "edited"
    away = time.monotonic() - since
    assert follower.age >= away
    assert acting(follower) == ["k"]
    await asyncio.to_thread(place.server.start)
    asked = time.monotonic()
    await follower.refresh()
    age = follower.age
    assert age <= time.monotonic() - asked


async def test_a_router_over_a_folder_goes_dense_past_the_time_to_live(place: Place) -> None:
    await place.store.delete_override("k")
    options: dict[str, Any] = {"policy_dir": place.folder, "drain_seconds": 0.1, "policy_ttl": 2.0}
    model = tiny_model(place.path)
    async with running(RouterConfig(model, ("127.0.0.1:1",), place.server.url, "127.0.0.1:0", **options)) as router:
        place.server.kill()

        async def stale() -> bool:
            return (await router.tier())[1] == "REASON_STALE_POLICY"

        await until(stale)


class Cut(PolicyStore):
    """A store that can be asked whether it changed, and then goes away."""

    cut = False

    async def read(self) -> Contents:
        if self.cut:
            raise StoreError("cut")
        return await super().read()


async def test_a_change_that_was_seen_and_could_not_be_read_is_read_later(place: Place) -> None:
    store = Cut(place.server.url)
    follower = PolicyFollower(PolicyFolder(place.folder, store), 300.0)
    await follower.start()
    store.cut = True
    await place.store.delete_override("k")
    since = time.monotonic()
    await follower.refresh()
    away = time.monotonic() - since
    assert (acting(follower), follower.age >= away) == (["k"], True)
    store.cut = False
    await follower.refresh()
    assert acting(follower) == []
    await store.close()


@pytest.mark.parametrize("over_folder", [False, True])
async def test_the_stores_clock_is_known_after_a_restart_without_it(place: Place, *, over_folder: bool) -> None:
    timed = replace(KILL, expire_time=time.time() - 1800.0)
    local = replace(timed, id="local")
    place.file.save(7, [], [timed, local], [Own(local, time.time() - 3600.0)], clock_offset=-3600.0, overrides_at=3)
    place.server.kill()
    follower = place.follower() if over_folder else PolicyFollower(place.store, 300.0, place.file)
    await follower.start()
    assert follower.now() - time.time() == pytest.approx(-3600.0, abs=1.0)
    assert sorted(acting(follower)) == ["k", "local"]
    assert all((o.expire_time or 0.0) > follower.now() for o in follower.snapshot.overrides)
    # By the store's clock, too, no local one was set later than now.
    assert all(own.since <= follower.now() for own in follower.overrides.local())
    # It is written again with what is saved next, by a router that has not heard the store either.
    follower.overrides.kill()
    await place.followed(follower)
    contents = place.file.contents()
    assert (contents.clock_offset, contents.overrides_at) == (pytest.approx(-3600.0, abs=1.0), 3)


def test_files_from_before_tell_of_no_clock(place: Place) -> None:
    place.file.save(7, [], [KILL], clock_offset=-3600.0, overrides_at=3)
    path = place.path / "snapshot.json"
    gone = ', "clock_offset": -3600.0, "overrides_at": 3, "overrides_event": ""'
    path.write_text(path.read_text().replace(gone, ""))
    contents = place.file.contents()
    assert (contents.clock_offset, contents.overrides_at) == (0.0, 7)
