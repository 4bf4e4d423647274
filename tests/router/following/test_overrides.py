"""Overrides by revisions: no old read and no old end has a say in what came after it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage.contents import Asked, Contents, Cursor, Delta, Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.following import guards
from sparsity_router.following.acting import KILL_SWITCH_ID
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.guards import GuardMonitor, override_id
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.own import Change, Own
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.following.windows import MIN_SAMPLES
from sparsity_rpc.errors import StoreError
from support.fault_proxy import FaultProxy
from support.routers.overrides import ENDED, LOST, read
from support.routers.router import running, until
from support.stores.snapshots import stored
from support.stores.valkey import Valkey
from support.tiny import tiny_model

KILL = Override("k", Scope.GLOBAL, reason="incident")


def at(revision: int, override: Override = KILL) -> Override:
    return replace(override, revision=revision)


def made() -> tuple[Overrides, list[list[str]]]:
    """Overrides, and the ids that acted after each change."""
    told: list[list[str]] = []
    overrides = Overrides(lambda: told.append([override.id for override in overrides.active()]))
    return overrides, told


def acts(overrides: Overrides) -> bool:
    return [override.id for override in overrides.active()] == ["k"]


def test_one_that_is_set_again_under_its_id_acts_although_nobody_saw_it_gone() -> None:
    overrides, _ = made()
    read(overrides, [at(5)], 5)
    assert overrides.end("k", 6)
    assert not acts(overrides)
    # A read from before the end says nothing new; one from after it does.
    read(overrides, [at(5)], 5)
    assert not acts(overrides)
    read(overrides, [at(7)], 7)
    assert acts(overrides)


def test_an_old_read_blanks_no_live_switch() -> None:
    overrides, told = made()
    read(overrides, [], 10)
    overrides.put(KILL)
    overrides.hand_over(KILL, 11)
    read(overrides, [], 10)
    read(overrides, [at(11)], 11)
    assert told == [["k"]]
    read(overrides, [], 12, ENDED)
    assert not acts(overrides)


def test_an_end_that_the_store_told_of_late_ends_what_came_before_only() -> None:
    overrides, _ = made()
    read(overrides, [at(3)], 4)
    # The store, asked, had none: what the last read has is gone.
    assert overrides.end("k")
    assert not acts(overrides)
    read(overrides, [at(3)], 4)
    assert not acts(overrides)
    read(overrides, [at(6)], 6)
    assert acts(overrides)
    assert not overrides.end("unknown")


def test_what_is_handed_over_after_it_was_ended_stays_ended() -> None:
    overrides, _ = made()
    overrides.put(KILL)
    overrides.end("k", 6)
    overrides.hand_over(KILL, 5)
    assert not acts(overrides)
    overrides.hand_over(KILL, 7)
    assert acts(overrides)
    # However far a failover set the store back, an operator can end it.
    read(overrides, [], 1, LOST)
    assert acts(overrides)
    overrides.end("k")
    assert not acts(overrides)


async def test_the_store_numbers_its_overrides() -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        for _ in range(2):
            revision = await store.put_override(at(99))
            contents = await store.read()
            assert [override.revision for override in contents.overrides] == [revision] == [contents.overrides_at]
        assert contents.overrides == [KILL]
        await store.close()


class Slow:
    """A source whose answers are as old as the question, and come when they are let go."""

    def __init__(self) -> None:
        self.overrides: list[Override] = []
        self.revision, self.said = 1, float("inf")
        self.ended: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()

    async def read(self) -> Contents:
        return Contents(Cursor(1, "", ""), [], [], {}, 0.0, overrides_at=1)

    async def delta(self, cursor: Cursor) -> Delta:
        overrides, revision = list(self.overrides), self.revision
        await self.go.wait()
        return Delta(cursor, {}, overrides, {}, 0.0, revision)

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        await asyncio.sleep(0.01)

    def resume(self, saved: Contents, age: float) -> bool:
        return False

    async def word_on(self, asked: Asked) -> Word:
        there = [override for override in self.overrides if override.id == asked.id]
        return Word(there[0] if there else None, (bool(there) and self.said >= asked.since) or asked.id in self.ended)


async def test_a_read_that_was_under_way_leaves_a_kill_switch_alone() -> None:
    source = Slow()
    follower = PolicyFollower(source, ttl=300.0)
    source.go.set()
    await follower.refresh()
    source.go.clear()
    late = asyncio.create_task(follower.refresh())
    await asyncio.sleep(0.01)
    follower.overrides.put(KILL)
    source.overrides, source.revision = [at(2)], 2
    follower.overrides.hand_over(KILL, 2)
    source.go.set()
    await late
    assert [override.id for override in follower.snapshot.overrides] == ["k"]
    await follower.refresh()
    assert [override.id for override in follower.snapshot.overrides] == ["k"]


class Returning(Slow):
    """A source that is away at first."""

    away = True

    async def read(self) -> Contents:
        if self.away:
            raise StoreError("away")
        return await super().read()

    async def delta(self, cursor: Cursor) -> Delta:
        if self.away:
            raise StoreError("away")
        return await super().delta(cursor)


async def restarted(folder: Path, *overrides: Override) -> tuple[PolicyFollower, Returning]:
    """A router that was ended while the store was away and overrides acted, and started again."""
    source, file = Returning(), SnapshotFile(folder / "policies.json")
    before = Overrides(lambda: None)
    read(before, overrides, 1)
    before.kill()
    file.save(1, [], before.active(), before.local())
    follower = PolicyFollower(source, ttl=300.0, disk=file)
    await follower.start()
    assert KILL_SWITCH_ID in [override.id for override in follower.snapshot.overrides]
    return follower, source


async def test_a_switch_by_signal_outlasts_a_restart_and_the_stores_return(tmp_path: Path) -> None:
    follower, source = await restarted(tmp_path)
    source.away = False
    await follower.refresh()
    assert [override.id for override in follower.snapshot.overrides] == [KILL_SWITCH_ID]
    # It is this process's own: the store is not told.
    assert follower.overrides.waiting() == []


async def test_a_switch_by_signal_is_ended_after_a_restart_as_before(tmp_path: Path) -> None:
    by_signal, _ = await restarted(tmp_path)
    by_signal.overrides.unkill()
    by_sibling, _ = await restarted(tmp_path)
    by_sibling.overrides.apply(Change(KILL_SWITCH_ID, None))
    assert by_signal.snapshot.overrides == by_sibling.snapshot.overrides == ()


async def test_a_newer_word_of_the_store_outlasts_what_was_set_here_before_a_restart(tmp_path: Path) -> None:
    """Of one id the store may hold a denser cap by now: the one from before must not take its place."""
    file, before = SnapshotFile(tmp_path / "policies.json"), Overrides(lambda: None)
    before.put(replace(KILL, max_tier=Tier.MODERATE))
    file.save(1, [], before.active(), before.local())
    source = Returning()
    source.away, source.overrides, source.revision = False, [at(5)], 5
    source.go.set()
    follower = PolicyFollower(source, ttl=300.0, disk=file)
    await follower.start()
    assert [override.max_tier for override in follower.snapshot.overrides] == [Tier.DENSE]
    assert follower.overrides.waiting() == []


async def delivered(overrides: Overrides, store: PolicyStore) -> None:
    """Has the store get what it is to have."""

    async def none_waits() -> bool:
        return not overrides.waiting()

    delivering = asyncio.create_task(overrides.deliver(store))
    await until(none_waits)
    delivering.cancel()


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(("since", "outlasts"), [(-60.0, False), (60.0, True), (None, True)])
async def test_what_the_store_was_told_of_since_holds_after_a_restart(
    tmp_path: Path, since: float | None, *, outlasts: bool, away: bool
) -> None:
    """An override that was ended while its router was down stays ended, and is not written to the store again."""
    file = SnapshotFile(tmp_path / "policies.json")
    with Valkey() as server:
        store = PolicyStore(server.url)
        await store.put_override(KILL)
        await store.delete_override("k")
        # As a router has it that was ended before it could write that the store had the override.
        local = [Own(KILL, time.time() + since, token="t")] if since is not None else []
        file.save(1, [], [KILL], local)
        if since is None:
            path = tmp_path / "policies.json"
            path.write_text(path.read_text().replace('"local": {}', '"waiting": ["k"]'))
        source = Returning()
        source.away = away
        follower = PolicyFollower(source if away else store, ttl=300.0, disk=file)
        await follower.start()
        # Nobody can ask a store that is away.
        assert [override.id for override in follower.snapshot.overrides] == (["k"] if away or outlasts else [])
        await delivered(follower.overrides, store)
        assert (await store.read()).overrides == ([KILL] if outlasts else [])
        assert [override.id for override in follower.snapshot.overrides] == (["k"] if outlasts else [])
        await store.close()


async def test_an_older_one_of_an_outage_takes_no_newer_ones_place() -> None:
    """Two routers set one of the same id, the first of them while the store was away: the later one holds."""
    overrides, _ = made()
    with Valkey() as server:
        store = PolicyStore(server.url)
        overrides._now = lambda: time.time() - 60.0
        overrides.put(replace(KILL, max_tier=Tier.MODERATE))
        await store.put_override(KILL)
        await delivered(overrides, store)
        assert overrides.active() == (await store.read()).overrides == [KILL]
        await store.close()


@pytest.mark.parametrize(("revision", "acts"), [(0, True), (39, True), (51, False)])
async def test_a_store_that_went_back_over_a_restart_ends_nothing(tmp_path: Path, revision: int, *, acts: bool) -> None:
    """What the store had by the file acts on where it has lost it, and not where somebody ended it."""
    file, source = SnapshotFile(tmp_path / "policies.json"), Returning()
    file.save(50, [], [at(40)], overrides_at=50)
    source.away, source.revision, source.ended = False, revision, set() if acts else {"k"}
    follower = PolicyFollower(source, ttl=300.0, disk=file)
    await follower.start()
    assert [override.id for override in follower.snapshot.overrides] == (["k"] if acts else [])
    assert [override.id for override in follower.overrides.waiting()] == (["k"] if acts else [])


async def test_files_of_routers_from_before_have_what_no_store_had(tmp_path: Path) -> None:
    file, before = SnapshotFile(tmp_path / "policies.json"), Overrides(lambda: None)
    before.put(KILL)
    file.save(1, [], before.active(), before.local())
    path = tmp_path / "policies.json"
    local = json.loads(path.read_text())["local"]
    path.write_text(path.read_text().replace(f'"local": {json.dumps(local)}', '"waiting": ["k"]'))
    assert [own.override.id for own in file.load().own] == ["k"]


async def test_what_the_store_held_unreadably_is_not_written_back_to_it(tmp_path: Path) -> None:
    follower, source = await restarted(tmp_path, at(0))
    assert follower.overrides.waiting() == []
    source.away = False
    await follower.refresh()
    assert [override.id for override in follower.snapshot.overrides] == [KILL_SWITCH_ID]


class Store:
    """A store that gives the override back to a caller who ends it meanwhile."""

    def __init__(self, overrides: Overrides, *, away: bool = False) -> None:
        self.overrides = overrides
        self.away = away
        self.deleted: list[str] = []

    async def put_override(self, override: Override, since: float, *told: Any) -> int:
        if self.away:
            raise StoreError("away")
        self.overrides.end(override.id, 0)
        return 4

    async def delete_override(self, override_id: str, revision: int | None = None) -> int:
        self.deleted.append(f"{override_id}@{revision}")
        return 5


async def test_one_that_is_ended_while_it_is_written_is_taken_out_again() -> None:
    overrides, _ = made()
    overrides.put(KILL)
    store: Any = Store(overrides)
    assert await overrides.write(store, KILL)
    assert (store.deleted, acts(overrides)) == (["k@4"], False)
    overrides.put(KILL)
    store.away = True
    assert not await overrides.write(store, KILL)
    assert acts(overrides)


BAD = inference_pb2.SparsityReport(coverage=0.5)


async def guarded() -> tuple[GuardMonitor, PolicyFollower]:
    """A guard over one domain whose aggressive answers are too bad."""
    document = {"domain": "low", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}]}
    policy = parse_policy(document | {"guards": {"min_coverage": 0.8}})
    source = Slow()

    async def read() -> Contents:
        return Contents(Cursor(1, "", ""), [stored(policy)], [], {}, 0.0, overrides_at=1)

    async def delta(cursor: Cursor) -> Delta | None:
        return None

    source.read, source.delta = read, delta  # type: ignore[method-assign, assignment]
    follower = PolicyFollower(source, ttl=300.0)
    await follower.refresh()
    return GuardMonitor(follower, None), follower


async def samples(monitor: GuardMonitor, count: int) -> None:
    for _ in range(count):
        monitor.coverage("low", Tier.AGGRESSIVE, BAD)
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


async def test_an_operators_end_of_a_guards_cap_stands_until_there_is_evidence_from_after_it() -> None:
    monitor, follower = await guarded()
    await samples(monitor, MIN_SAMPLES)
    assert [override.id for override in follower.overrides.active()] == [override_id("low")]
    # Answers that were under way end while the cap holds.
    await samples(monitor, MIN_SAMPLES - 1)
    follower.overrides.end(override_id("low"))
    await samples(monitor, MIN_SAMPLES - 1)
    assert not follower.overrides.active()
    await samples(monitor, 1)
    assert follower.overrides.active()


async def test_a_cap_that_has_run_out_keeps_no_guard_from_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_DEMOTION_SECONDS", 0.01)
    monitor, follower = await guarded()
    await samples(monitor, MIN_SAMPLES)
    first = follower.overrides.active()[0].expire_time
    assert first is not None
    await asyncio.sleep(0.02)
    await samples(monitor, MIN_SAMPLES)
    again = follower.overrides.active()[0].expire_time
    assert again is not None
    assert again > first


async def test_audit_events_of_an_outage_carry_the_time_of_the_call(tmp_path: Path) -> None:
    with Valkey() as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), f"redis://{proxy.address}/0", "127.0.0.1:0")
            async with running(config) as router:
                proxy.refusing = True
                proxy.cut()
                override = policy_pb2.Override(id="k", scope=1, reason="incident")
                called = time.time()
                await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
                took = time.time() - called
                await asyncio.sleep(1.0)
                proxy.refusing = False

                async def told() -> Any:
                    request = policy_pb2.ListAuditEventsRequest()
                    events = (await router.policy.ListAuditEvents(request)).events
                    return [event for event in events if event.method == "PutOverride"]

                event = (await until(told))[0]
                assert called - 0.5 <= event.time.ToNanoseconds() / 1e9 <= called + took + 0.5


def test_a_kill_switch_acts_although_the_log_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the log's buffer does to a handler of signals that comes amid a write that waits.
    def busy(*_: Any) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    overrides, told = made()
    monkeypatch.setattr(logging.getLogger("sparsity.router.overrides"), "warning", busy)
    with pytest.raises(RuntimeError):
        overrides.kill()
    assert told == [[KILL_SWITCH_ID]]
    with pytest.raises(RuntimeError):
        overrides.unkill()
    assert not overrides.active()
