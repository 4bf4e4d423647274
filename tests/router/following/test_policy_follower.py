"""Following a source: increments, readiness, clocks, outages, a folder as the source."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import policy_pb2, policy_pb2_grpc
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.confined import NO_PROCESS, SOURCES, NoProcessError
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import DetectionMode, Override, Policy, Scope, StoredPolicy, Tier
from sparsity_policies.storage.contents import Asked, Contents, Cursor, Delta, Word
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.following import follower as follower_
from sparsity_router.following.building import Builder
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.observing.policy_metrics import observe_policies
from sparsity_router.observing.recorder import Recorder
from sparsity_rpc.errors import ConfigurationError, StoreError
from sparsity_serving.background.ending import end_tasks
from support.routers.rig import DENSE
from support.routers.router import failure, running, until
from support.routers.router_process import RouterProcess
from support.stores.redis_server import RedisServer
from support.stores.snapshots import stored
from support.stores.valkey import Valkey
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

POLICIES = {policy.domain: policy for policy in shipped_policies("small-context")}
WORKERS = ("127.0.0.1:1",)


def random_policy(chance: random.Random, domain: str) -> Policy:
    detection = {"flag": f"flag-{domain}", "literals": [f"secret {domain} {chance.randrange(5)}"]}
    bands = [{"from_tokens": 0, "tier": chance.choice(("dense", "moderate"))}]
    return parse_policy({"domain": domain, "risk": "low", "bands": bands, "detection": detection})


async def test_increments_give_what_a_whole_read_gives() -> None:
    chance = random.Random(11)
    with Valkey() as server:
        store = PolicyStore(server.url)
        # The fewer there are beside those that change, the sooner a whole read has compiled them.
        await store.seed([POLICIES["rag"], POLICIES["code"]])
        follower = PolicyFollower(store, ttl=300)
        await follower.start()
        names = [f"d{number}" for number in range(8)]
        for _ in range(60):
            for _ in range(chance.randrange(1, 4)):
                domain = chance.choice(names)
                there = {stored.policy.domain for stored in (await store.read()).policies}
                if domain in there and chance.random() < 0.3:
                    await store.delete(domain, etag=None, actor="a", reason="r")
                elif chance.random() < 0.2:
                    await store.put_override(Override(f"o{chance.randrange(3)}", Scope.DOMAIN, domain))
                else:
                    await store.put(random_policy(chance, domain), etag=None, actor="a", reason="r")
            await follower.refresh()
            contents = await store.read()
            whole = Snapshot.build(contents.revision, contents.policies, contents.overrides)
            assert follower.snapshot.revision == whole.revision
            assert follower.snapshot.content_hash == whole.content_hash
            for domain in names:
                for number in range(5):
                    text = f"see Secret  {domain} {number} here"
                    assert follower.snapshot.scanner.scan(text) == whole.scanner.scan(text)
        await store.close()


async def test_garbage_is_held_at_its_last_good_version_until_it_is_mended() -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        await store.seed(POLICIES.values())
        follower = PolicyFollower(store, ttl=300)
        await follower.start()
        raw = store.redis
        for garbage in (
            "garbage",
            '{"body": "{}"}',
            '{"etag": 1, "body": "{\\"domain\\": \\"rag\\", \\"schema\\": 0}"}',
        ):
            await raw.hset("{sparsity}:policies", "rag", garbage)
            await raw.incr("{sparsity}:revision")
            await raw.xadd("{sparsity}:events", {"domain": "rag", "revision": "0"})
            await follower.refresh()
            assert follower.snapshot.rejected == ("rag",)
            assert follower.snapshot.policies["rag"].policy == POLICIES["rag"]
            # An edit of another domain leaves it told.
            await store.put(replace(POLICIES["code"], owner=garbage), etag=None, actor="a", reason="r")
            await follower.refresh()
            assert follower.snapshot.rejected == ("rag",)
        await store.put(POLICIES["rag"], etag=None, actor="a", reason="mended")
        await follower.refresh()
        assert follower.snapshot.rejected == ()
        await store.close()


async def test_gauges_tell_what_an_alert_needs() -> None:
    told = Meter()
    source = Source()
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    follower._snapshot = replace(follower.snapshot, rejected=("rag",), drifted=("a", "b"))
    recorder = Recorder(None)
    recorder.dropped = 7
    observe_policies(follower, recorder, told.meter)
    found = {name: value for name, [(_, value)] in told.values().items()}
    assert found.pop("sparsity.policy.age") >= 0
    assert found == {
        "sparsity.policy.revision": 1,
        "sparsity.policy.lag": 0,
        "sparsity.policy.rejected": 1,
        "sparsity.policy.drifted": 2,
        "sparsity.decision_log.dropped": 7,
    }


class Source:
    """A source with a clock and a revision of the test's choosing."""

    def __init__(self) -> None:
        self.revision = 1
        self.policies: list[StoredPolicy] = []
        self.rejected: dict[str, str] = {}
        self.clock_offset = 0.0
        self.away = False

    async def read(self) -> Contents:
        cursor = Cursor(self.revision, f"{self.revision}", "")
        return Contents(cursor, self.policies, [], self.rejected, self.clock_offset)

    async def delta(self, cursor: Cursor) -> Delta | None:
        if self.away:
            raise StoreError("away")
        same = cursor.revision == self.revision
        return Delta(cursor, {}, [], {}, self.clock_offset) if same else None

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        await asyncio.sleep(0.01)
        if self.away:
            raise StoreError("away")

    async def word_on(self, asked: Asked) -> Word:
        return Word(None, is_later=False)

    def resume(self, saved: Contents, age: float) -> bool:
        return False


async def test_the_sources_clock_is_used() -> None:
    source = Source()
    source.clock_offset = 3600.0
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    assert follower.now() - time.time() == pytest.approx(3600, abs=1)
    source.clock_offset = -7200.0
    await follower.refresh()
    assert follower.now() - time.time() == pytest.approx(-7200, abs=1)


async def test_a_change_that_fails_for_no_fault_of_its_own_makes_a_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    monkeypatch.setattr(SOURCES, "_started", lambda: (_ for _ in ()).throw(NoProcessError("finds no process")))
    monkeypatch.setattr(follower_, "_RETRY_SECONDS", 0.01)
    following = asyncio.create_task(follower.follow())
    source.revision, source.policies = 2, [heavy("a")]

    async def waits() -> bool:
        return follower.waits > 0.1

    await until(waits)
    assert (follower.snapshot.revision, follower.snapshot.rejected) == (1, ())
    source.revision, source.policies = 1, []

    async def current() -> bool:
        return follower.lag == 0

    await until(current)
    source.revision, source.policies = 2, [heavy("a")]
    await until(waits)
    monkeypatch.undo()
    await until(current)
    assert (follower.snapshot.revision, follower.snapshot.policies.keys()) == (2, {"a"})
    following.cancel()


def heavy(domain: str, texts: int = 1, tier: str = "dense") -> StoredPolicy:
    """A policy that weighs as much as it has texts to look for."""
    bands = [{"from_tokens": 0, "tier": tier}]
    detection = {"patterns": [f"secret {domain} {number}" for number in range(texts)]}
    return stored(parse_policy({"domain": domain, "risk": "low", "bands": bands, "detection": detection}))


def tiers(follower: PolicyFollower) -> dict[str, str]:
    return {domain: item.policy.bands[0].tier.word for domain, item in follower.snapshot.policies.items()}


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets eight texts be compiled together, and tells how many each compilation had."""
    compile_, asked = SOURCES.compile, []

    def limited(expressions: Sequence[str]) -> Any:
        asked.append(len(expressions))
        if len(expressions) > 8:
            raise ValueError("take more than 20 s to compile together")
        return compile_(expressions)

    monkeypatch.setattr(SOURCES, "compile", limited)
    return asked


async def test_what_does_not_compile_together_is_held_and_everything_else_is_taken(
    few_texts: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    source.policies = [heavy("a", 3), heavy("b", 3), heavy("c", 2)]
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    assert follower.snapshot.rejected == ()

    async def edit(*policies: StoredPolicy) -> None:
        source.revision += 1
        source.policies = list({one.policy.domain: one for one in (*source.policies, *policies)}.values())
        await follower.refresh()
        assert (follower.snapshot.revision, follower.lag, follower.waits) == (source.revision, 0.0, 0.0)

    # In one look: two that are good, one that is too much in the place of a good one, and one that is too much at all.
    await edit(heavy("a", 3, "moderate"), heavy("b", 12, "moderate"), heavy("c", 4, "moderate"), heavy("d", 20))
    assert follower.snapshot.rejected == ("b", "d")
    assert tiers(follower) == {"a": "moderate", "b": "dense", "c": "moderate"}
    assert follower.snapshot.scanner.scan("secret c 3, secret b 8, secret b 2").domains == {"b", "c"}
    assert (
        "b cannot be taken up (take more than 20 s to compile together); its last good version is kept" in caplog.text
    )
    assert "d cannot be taken up (take more than 20 s to compile together); it is served dense" in caplog.text
    caplog.clear()
    # The next edits wait for no attempt at what was refused, and nothing is told twice.
    few_texts.clear()
    await edit(heavy("a", 3, "aggressive"))
    assert follower.snapshot.rejected == ("b", "d")
    assert tiers(follower) == {"a": "aggressive", "b": "dense", "c": "moderate"}
    assert max(few_texts, default=0) <= 8
    assert "cannot" not in caplog.text
    # Written anew, or taken away, it is told no more.
    source.policies = [one for one in source.policies if one.policy.domain != "d"]
    await edit(heavy("b", 2, "aggressive"))
    assert follower.snapshot.rejected == ()
    assert tiers(follower) == {"a": "aggressive", "b": "aggressive", "c": "moderate"}


async def test_what_was_too_much_is_taken_up_once_there_is_room(few_texts: list[int]) -> None:
    source = Source()
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    source.revision, source.policies = 2, [heavy("a", 6), heavy("b", 6)]
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.policies.keys()) == (("b",), {"a"})
    source.revision, source.policies = 3, [heavy("a", 1), source.policies[1]]
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.policies.keys()) == ((), {"a", "b"})


async def test_a_router_starts_with_what_does_not_compile_together(few_texts: list[int], tmp_path: Path) -> None:
    source = Source()
    source.policies = [heavy("a", 4), heavy("b", 4), heavy("c", 4), heavy("d", 20)]
    follower = PolicyFollower(source, ttl=300, disk=SnapshotFile(tmp_path / "policies.json"))
    await follower.start()
    assert follower.snapshot.rejected == ("d",)
    assert follower.snapshot.scanner.scan("secret a 3, secret b 3, secret c 3").domains == {"a", "b", "c"}
    SnapshotFile(tmp_path / "policies.json").save(7, source.policies, [])
    source.away = True
    follower = PolicyFollower(source, ttl=300, disk=SnapshotFile(tmp_path / "policies.json"))
    await follower.start()
    assert (follower.snapshot.revision, follower.snapshot.rejected) == (7, ("d",))


async def test_exemplars_that_are_not_learnt_in_time_hold_their_domain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> Any:
        raise ValueError("take more than 30 s to learn together")

    monkeypatch.setattr(SOURCES, "learn", late)
    source = Source()
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    plain = heavy("a", 1)
    detection = replace(plain.policy.detection, exemplars=("a text that nobody wrote",), mode=DetectionMode.ACT)
    learnt = replace(plain, policy=replace(plain.policy, domain="b", detection=detection))
    source.revision, source.policies = 2, [plain, learnt]
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.policies.keys()) == (("b",), {"a"})


async def test_what_nobody_could_check_is_looked_at_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower_, "_UNCHECKED_SECONDS", 0.05)
    source = Source()
    source.rejected = {"a": f"{NO_PROCESS} that reads it"}
    follower = PolicyFollower(source, ttl=300)
    await follower.start()
    for _ in range(3):
        await asyncio.sleep(0.06)
        await follower.refresh()
    assert follower.snapshot.rejected == ("a",)
    assert caplog.text.count("a cannot be read") == 1
    # Nothing was written meanwhile.
    source.rejected, source.policies = {}, [heavy("a")]
    await asyncio.sleep(0.06)
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.policies.keys()) == ((), {"a"})


async def test_a_kill_switch_does_not_wait_for_a_slow_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        await store.seed(POLICIES.values())
        follower = PolicyFollower(store, ttl=300)
        await follower.start()
        following = asyncio.create_task(follower.follow())
        build, release = Snapshot.build, threading.Event()

        def slow(*arguments: Any, **options: Any) -> Snapshot:
            release.wait(10)
            return build(*arguments, **options)

        monkeypatch.setattr(Snapshot, "build", slow)
        written = await store.put(random_policy(random.Random(1), "new"), etag=None, actor="a", reason="r")
        await asyncio.sleep(0.1)
        await store.put_override(Override("k", Scope.GLOBAL, reason="r"))

        async def killed() -> bool:
            return [o.id for o in follower.snapshot.overrides] == ["k"]

        await until(killed)
        assert follower.snapshot.revision < written.revision
        assert follower.lag > 0
        release.set()
        assert await follower.reached(written.revision + 1, 5.0)
        assert [o.id for o in follower.snapshot.overrides] == ["k"]
        assert follower.lag == 0
        following.cancel()
        await store.close()


async def test_nothing_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, started, release = Source(), threading.Event(), threading.Event()
    save = SnapshotFile.save

    def slow(*arguments: Any) -> None:
        started.set()
        release.wait(10)
        save(*arguments)

    monkeypatch.setattr(SnapshotFile, "save", slow)
    follower = PolicyFollower(source, ttl=300, disk=SnapshotFile(tmp_path / "snapshot.json"))
    await follower.start()
    following = asyncio.create_task(follower.follow())
    assert await asyncio.to_thread(started.wait, 5)
    source.revision = 2
    assert await follower.reached(2, 5.0)
    release.set()

    async def saved() -> bool:
        path = tmp_path / "snapshot.json"
        return path.exists() and SnapshotFile(path).contents().cursor.revision == 2

    await until(saved)
    following.cancel()


async def test_a_lagging_router_is_not_ready_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path)
    worker = await FakeWorker("d", DENSE, model).start()
    with Valkey() as server:
        config = RouterConfig(
            model, (worker.address,), server.url, "127.0.0.1:0", drain_seconds=0.1, max_policy_lag=0.3
        )
        async with running(config) as router:

            async def ready() -> bool:
                return await router.health() == "SERVING"

            await until(ready)
            # Peers take as long over a compilation: it is no reason to want no traffic.
            build, release = Builder.build, threading.Event()

            def slow(*arguments: Any, **options: Any) -> Snapshot:
                release.wait(10)
                return build(*arguments, **options)

            monkeypatch.setattr(Builder, "build", slow)
            edited = (await router.edit()).policy
            for _ in range(10):
                assert await ready()
                await asyncio.sleep(0.1)
            release.set()

            async def taken_up() -> bool:
                return bool((await router.get()).etag == edited.etag)

            await until(taken_up)
            monkeypatch.setattr(Builder, "build", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no")))
            await router.edit()

            async def unready() -> bool:
                return await router.health() == "NOT_SERVING"

            await until(unready)
            monkeypatch.setattr(Builder, "build", build)
            await until(ready)
    await worker.stop()


async def test_an_override_set_while_the_store_was_away_reaches_it_later(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        model = tiny_model(tmp_path)
        worker = await FakeWorker("d", DENSE, model).start()
        config = RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", drain_seconds=0.1)
        async with running(config) as router:
            server.kill()
            override = policy_pb2.Override(id="k", scope=1, reason="incident")
            put = await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))
            assert not put.stored

            async def ready() -> bool:
                return await router.health() == "SERVING"

            await until(ready)
            await asyncio.to_thread(server.start)
            store = PolicyStore(server.url, timeout=10.0)

            async def there() -> bool:
                return [o.id for o in (await store.read()).overrides] == ["k"]

            await until(there, 30.0)
            await store.close()
        await worker.stop()


async def test_a_router_starts_from_disk_while_the_store_is_away(tmp_path: Path) -> None:
    file = tmp_path / "policies.json"
    options: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 0.1, "snapshot_file": file, "policy_ttl": 60.0}
    with RedisServer(tmp_path / "redis", "--appendonly", "yes") as server:
        config = RouterConfig(tiny_model(tmp_path), WORKERS, server.url, **options)
        async with running(config) as router:
            await router.edit(bands=[(0, 2)])
            override = policy_pb2.Override(id="k", scope=2, target="code", reason="incident")
            await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))

            async def saved() -> bool:
                return file.exists() and '"k"' in file.read_text()

            await until(saved)
        server.kill()
        async with running(config) as router:
            assert await router.tier() == ("TIER_MODERATE", "REASON_LENGTH_BAND")
            assert [o.id for o in (await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides] == [
                "k"
            ]
            # Once the store is back, it is followed.
            await asyncio.to_thread(server.start)

            async def edited() -> bool:
                try:
                    await router.edit(bands=[(0, 1)])
                except grpc.aio.AioRpcError:
                    return False
                return True

            await until(edited)
            await router.becomes("TIER_DENSE")
        # Its age counts on across restarts: what is too old is dense.
        server.kill()
        os.utime(file, (time.time() - 120, time.time() - 120))
        async with running(config) as router:
            assert await router.tier() == ("TIER_DENSE", "REASON_STALE_POLICY")
        file.write_text("garbage")
        with pytest.raises(ConfigurationError, match="--snapshot-file"):
            async with running(config):
                pass


async def test_a_change_is_on_disk_although_the_store_went_away_at_once(tmp_path: Path) -> None:
    source, file = Source(), SnapshotFile(tmp_path / "policies.json")
    follower = PolicyFollower(source, ttl=300, disk=file)
    await follower.start()
    following = asyncio.create_task(follower.follow())
    build = Snapshot.build

    def last(*arguments: Any, **options: Any) -> Snapshot:
        # Nothing more is heard of the source once it has said what is compiled here.
        source.away = True
        time.sleep(0.2)
        return build(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "build", last)
        source.revision = 2
        assert await follower.reached(2, 5.0)

    async def saved() -> bool:
        return file.contents().cursor.revision == 2

    await until(saved)
    following.cancel()


def test_a_slower_process_does_not_put_back_what_a_faster_one_has_written(tmp_path: Path) -> None:
    fast, slow = (SnapshotFile(tmp_path / "policies.json") for _ in range(2))
    fast.save(11, [], [], age=0.5)
    slow.save(10, [], [Override("k", Scope.GLOBAL)], age=1.0)
    assert fast.contents().cursor.revision == 11
    assert {path.name for path in tmp_path.iterdir()} == {"policies.json", "policies.json.lock"}
    # The same revision with an override, and a store that began anew, are written.
    slow.save(11, [], [Override("k", Scope.GLOBAL)], age=1.0)
    assert [override.id for override in fast.contents().overrides] == ["k"]
    slow.save(1, [], [], age=0.0)
    assert fast.contents().cursor.revision == 1
    (tmp_path / "policies.json").write_text("garbage")
    slow.save(2, [], [], age=9.0)
    assert fast.contents().cursor.revision == 2


async def test_an_override_set_in_an_outage_survives_a_restart_and_reaches_the_store(tmp_path: Path) -> None:
    file = tmp_path / "policies.json"
    with RedisServer(tmp_path / "redis") as server:
        config = RouterConfig(
            tiny_model(tmp_path), WORKERS, server.url, "127.0.0.1:0", drain_seconds=0.1, snapshot_file=file
        )
        async with running(config) as router:
            server.kill()
            killed = time.time()
            await asyncio.sleep(1.5)
            override = policy_pb2.Override(id="k", scope=1, reason="incident")
            await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))

            async def saved() -> bool:
                return SnapshotFile(file).load().local == {"k"}

            await until(saved)
        # It was not current when it was written: the time to live of policies goes on.
        assert file.stat().st_mtime < killed + 1.0
        async with running(config) as router:
            found = await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())
            assert [o.id for o in found.overrides] == ["k"]
            await asyncio.to_thread(server.start)
            store = PolicyStore(server.url)

            async def there() -> bool:
                return [o.id for o in (await store.read()).overrides] == ["k"]

            await until(there)
            await store.close()


async def test_past_the_time_to_live_everything_is_dense(tmp_path: Path) -> None:
    with Valkey() as server:
        config = RouterConfig(
            tiny_model(tmp_path), WORKERS, server.url, "127.0.0.1:0", drain_seconds=0.1, policy_ttl=2.0
        )
        async with running(config) as router:
            await router.edit(bands=[(0, 2)])
            assert await router.tier() == ("TIER_MODERATE", "REASON_LENGTH_BAND")
            server.stop()
            await router.becomes("TIER_DENSE")
            assert await router.tier() == ("TIER_DENSE", "REASON_STALE_POLICY")


def write(folder: Path, *policies: Policy) -> None:
    folder.mkdir(exist_ok=True)
    for policy in policies:
        (folder / f"{policy.domain}.yaml").write_text(dump_yaml(policy))


async def test_a_folder_is_followed_and_broken_files_are_held(tmp_path: Path) -> None:
    write(tmp_path, POLICIES["rag"], POLICIES["code"])
    folder = PolicyFolder(tmp_path)
    follower = PolicyFollower(folder, ttl=300)
    await follower.start()
    assert follower.snapshot.policies.keys() == {"rag", "code"}
    first = follower.snapshot.content_hash
    await follower.refresh()
    assert follower.snapshot.revision == 1
    (tmp_path / "rag.yaml").write_text("domain: rag\nrisk: huge\n")
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.content_hash) == (("rag",), first)
    # The same domain in two files is nobody's.
    write(tmp_path, POLICIES["rag"])
    (tmp_path / "again.yaml").write_text(dump_yaml(replace(POLICIES["rag"], owner="other")))
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.content_hash) == (("rag",), first)
    (tmp_path / "again.yaml").unlink()
    (tmp_path / "code.yaml").unlink()
    await follower.refresh()
    assert (follower.snapshot.rejected, follower.snapshot.policies.keys()) == ((), {"rag"})
    with pytest.raises(ConfigurationError, match="--policy-dir"):
        PolicyFolder(tmp_path / "none")


async def test_a_router_over_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "policies", replace(POLICIES["rag"], owner="git"))
    config: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 0.1, "policy_dir": tmp_path / "policies"}
    async with running(RouterConfig(tiny_model(tmp_path), WORKERS, None, **config)) as router:
        assert (await router.get()).policy.owner == "git"
        error = await failure(router.edit())
        assert "policies come from the folder" in error.details()
        override = policy_pb2.Override(scope=1, reason="incident")
        assert not (await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=override))).stored
        assert (await router.tier())[1] != "REASON_UNKNOWN_DOMAIN"
        for call in (
            router.policy.ListAuditEvents(policy_pb2.ListAuditEventsRequest()),
            router.policy.ListPolicyRevisions(policy_pb2.ListPolicyRevisionsRequest(domain="rag")),
        ):
            assert "without --redis-url" in (await failure(call)).details()


async def test_drift_between_folder_and_store_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "policies", *POLICIES.values())
    with Valkey() as server:
        store = PolicyStore(server.url)
        await store.seed(POLICIES.values())
        await store.put(replace(POLICIES["code"], owner="by hand"), etag=None, actor="a", reason="r")
        await store.put_override(Override("k", Scope.DOMAIN, "rag", Tier.DENSE, reason="r"))
        config: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 0.1, "policy_dir": tmp_path / "policies"}
        async with running(RouterConfig(tiny_model(tmp_path), WORKERS, server.url, **config)) as router:
            call = router.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest())
            assert list((await call.read()).drifted_domains) == ["code"]
            assert (await router.get("code")).policy.owner == POLICIES["code"].owner
            assert len((await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides) == 1
            await store.delete_override("k")
            await store.put(POLICIES["code"], etag=None, actor="a", reason="r")
            while list((await call.read()).drifted_domains):
                pass
            call.cancel()
        await store.close()


def test_watchers_that_leave_do_no_harm(tmp_path: Path) -> None:
    """In a process of its own: what a call that has ended is asked can crash it."""
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url) as router:
        with grpc.insecure_channel(router.address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            for _ in range(30):
                call = stub.WatchPolicies(policy_pb2.WatchPoliciesRequest())
                next(iter(call))
                call.cancel()
            assert len(stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=5.0).policies) == 10
        assert router.alive()


async def test_a_full_disk_is_told_once_and_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sparsity_router.following.saving._RETRY_SECONDS", 0.02)
    save, tries, full = SnapshotFile.save, 0, True

    def saved(*arguments: Any, **named: Any) -> None:
        nonlocal tries
        tries += 1
        if full:
            raise OSError(28, "No space left on device")
        save(*arguments, **named)

    monkeypatch.setattr(SnapshotFile, "save", saved)
    follower = PolicyFollower(PolicyFolder(tmp_path), ttl=300, disk=SnapshotFile(tmp_path / "snapshot.json"))
    await follower.start()
    following = asyncio.create_task(follower.follow())

    async def tried() -> bool:
        return tries > 4

    async def saved_at_last() -> bool:
        return not follower.unsaved

    try:
        await until(tried)
        assert "No space left" in follower.unsaved
        full = False
        await until(saved_at_last)
        assert (tmp_path / "snapshot.json").exists()
    finally:
        await end_tasks([following])
    assert caplog.text.count("No space left") == 1
