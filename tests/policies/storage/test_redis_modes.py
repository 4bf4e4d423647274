"""The store on real Redis: one server that dies, a proxy that cuts, Sentinel failover, Cluster, many writers."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Override, Policy, Scope, StoredPolicy
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConflictError, NotFoundError, StoreError
from support.stores.redis_server import Proxy, RedisServer, cluster, sentinel

POLICIES = {policy.domain: policy for policy in shipped_policies("small-context")}
RAG = POLICIES["rag"]
WRITER = """
import asyncio, json, sys
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.storage.store import PolicyStore

async def main():
    store = PolicyStore(sys.argv[1], timeout=20)
    policies = shipped_policies("small-context")
    puts = (store.put(policies[n % 10], etag=None, actor=sys.argv[2], reason=str(n)) for n in range(125))
    print(json.dumps([stored.revision for stored in await asyncio.gather(*puts)]))
    await store.close()

asyncio.run(main())
"""


def numbered(number: int) -> Policy:
    return replace(RAG, description=f"write {number}")


async def history(store: PolicyStore, domain: str = "rag") -> list[StoredPolicy]:
    page = await store.history(domain, count=7)
    found = page.revisions
    while page.below:
        page = await store.history(domain, page.below, count=7)
        found += page.revisions
    return found


async def assert_sound(store: PolicyStore, acknowledged: list[StoredPolicy]) -> None:
    """Nothing acknowledged is lost, revisions are dense and in order, and the document is the newest revision."""
    found = await history(store)
    revisions = [stored.revision for stored in reversed(found)]
    assert revisions == list(range(1, len(revisions) + 1))
    written = {stored.revision: stored for stored in found}
    for stored in acknowledged:
        assert written[stored.revision].policy == stored.policy
        assert written[stored.revision].etag == stored.etag
    contents = await store.read()
    assert contents.revision == len(revisions)
    assert contents.policies == [found[0]]


async def test_a_thousand_puts_of_eight_processes_make_dense_revisions(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        command = (sys.executable, "-c", WRITER, server.url)
        create = asyncio.create_subprocess_exec
        processes = [await create(*command, f"w{n}", stdout=subprocess.PIPE) for n in range(8)]
        outputs = [(await process.communicate())[0] for process in processes]
        revisions = [number for output in outputs for number in json.loads(output)]
        assert sorted(revisions) == list(range(1, 1001))
        store = PolicyStore(server.url)
        found = [stored for domain in POLICIES for stored in await history(store, domain)]
        assert sorted(stored.revision for stored in found) == list(range(1, 1001))
        for domain in POLICIES:
            own = [stored.revision for stored in await history(store, domain)]
            assert own == sorted(own, reverse=True)
            assert (await store.history(domain)).revisions[0] in (await store.read()).policies
        await store.close()


@pytest.mark.parametrize("after_the_server", [False, True])
async def test_a_connection_cut_around_a_put_writes_once(tmp_path: Path, after_the_server: bool) -> None:
    with RedisServer(tmp_path) as server:
        async with Proxy(server.port) as proxy:
            store = PolicyStore(proxy.url)
            first = await store.put(numbered(0), etag="", actor="a", reason="r")
            proxy.cut_at, proxy.after_the_server = b"write 1", after_the_server
            second = await store.put(numbered(1), etag=first.etag, actor="a", reason="r")
            proxy.cut_at = b"EVAL"
            deleted = await store.delete("rag", etag=second.etag, actor="a", reason="r")
            assert proxy.cuts == 2
            assert (second.revision, deleted) == (2, 3)
            assert [stored.deleted for stored in await history(store)] == [True, False, False]
            assert await store.revision_number() == 3
            await store.close()


async def test_a_server_killed_at_any_moment_loses_no_acknowledged_write(tmp_path: Path) -> None:
    chance = random.Random(3)
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        store = PolicyStore(server.url, timeout=1.0)
        acknowledged: list[StoredPolicy] = []
        killed = 0

        async def kill() -> None:
            nonlocal killed
            while killed < 6:
                await asyncio.sleep(chance.uniform(0.05, 0.25))
                server.kill()
                killed += 1
                await asyncio.to_thread(server.start)

        killing = asyncio.create_task(kill())
        number = 0
        while not killing.done():
            number += 1
            try:
                acknowledged.append(await store.put(numbered(number), etag=None, actor="a", reason="r"))
            except StoreError:
                await asyncio.sleep(0.01)
            if number > 3000:
                # A fast machine must not write more than the history keeps.
                await asyncio.sleep(0.01)
        await killing
        assert len(acknowledged) > 20
        await assert_sound(store, acknowledged)
        await store.close()


async def test_a_torn_end_of_the_append_only_file_leaves_no_gap(tmp_path: Path) -> None:
    """Redis 6.2 keeps a part of the last transaction in the file, and replays it together with the next one."""
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:

        async def write(number: int) -> list[int]:
            store = PolicyStore(server.url)
            await store.put(numbered(number), etag=None, actor="a", reason="r")
            found = await history(store)
            assert await store.revision_number() == len(found)
            await store.close()
            return [stored.revision for stored in reversed(found)]

        for number in range(3):
            await write(number)
        server.kill()
        file = tmp_path / str(server.port) / "appendonly.aof"
        whole = file.read_bytes()
        for torn in range(whole.rfind(b"MULTI") + 20, len(whole), 331):
            file.write_bytes(whole[:torn])
            server.start()
            assert await write(10) == [1, 2, 3]
            server.kill()
            server.start()
            assert await write(20) == [1, 2, 3, 4]
            server.kill()


async def test_failover_under_sentinel_loses_and_reorders_nothing(tmp_path: Path) -> None:
    with sentinel(tmp_path) as (url, primary, replica):
        store = PolicyStore(url, timeout=1.0, wait_replicas=1)
        await store.put(numbered(0), etag="", actor="a", reason="r")
        cursor = (await store.read()).cursor
        acknowledged: list[StoredPolicy] = []
        failed = 0
        for number in range(1, 200):
            if number == 100:
                primary.kill()
                await store.close()
                # What was the replica serves alone from here on.
                store = PolicyStore(url, timeout=1.0)
                deadline = time.monotonic() + 20
                while True:
                    try:
                        await store.put(numbered(1000), etag=None, actor="a", reason="first after failover")
                        break
                    except StoreError:
                        failed += 1
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.05)
            acknowledged.append(await store.put(numbered(number), etag=None, actor="a", reason="r"))
        assert failed
        with replica.client() as client:
            assert client.info("replication")["role"] == "master"
        await assert_sound(store, acknowledged)
        # A follower of before goes on where it was.
        delta = await store.delta(cursor)
        assert delta is not None
        assert delta.policies["rag"] == acknowledged[-1]
        await store.close()


async def test_a_write_that_no_replica_holds_is_not_acknowledged(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = PolicyStore(server.url, wait_replicas=1)
        with pytest.raises(StoreError, match="0 of 1 replicas hold the write; a failover may lose it"):
            await store.put(RAG, etag="", actor="a", reason="r")
        await store.close()


async def test_another_write_under_the_same_revision_is_noticed(tmp_path: Path) -> None:
    """A failover without waiting for replicas can take back revisions and give them anew."""
    with RedisServer(tmp_path) as server:
        store = PolicyStore(server.url)
        await store.put(RAG, etag="", actor="a", reason="kept")
        await store.put(numbered(1), etag=None, actor="a", reason="lost")
        cursor = (await store.read()).cursor
        await store.close()
    with RedisServer(tmp_path) as server:
        store = PolicyStore(server.url)
        await store.put(RAG, etag="", actor="a", reason="kept")
        await store.put(numbered(2), etag=None, actor="a", reason="under the same revision")
        assert (await store.read()).cursor.revision == cursor.revision
        assert await store.delta(cursor) is None
        await store.close()


async def test_everything_works_on_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as url:
        store = PolicyStore(url)
        await store.seed(POLICIES.values())
        first = await store.put(numbered(1), etag=None, actor="a", reason="r")
        with pytest.raises(ConflictError):
            await store.put(numbered(2), etag="old", actor="a", reason="r")
        cursor = (await store.read()).cursor
        await store.put_override(Override("k", Scope.GLOBAL, reason="r"))
        await store.delete("code", etag=None, actor="a", reason="r")
        await store.wait(cursor, 1.0)
        delta = await store.delta(cursor)
        assert delta is not None
        assert (delta.policies, [o.id for o in delta.overrides]) == ({"code": None}, ["k"])
        await store.delete_override("k")
        assert (await store.history("rag")).revisions[0] == first
        log = DecisionLog(store.redis)
        assert [replayed async for replayed in log.replay(60)] == []
        with pytest.raises(NotFoundError):
            await log.report("x", "m", 0.5)
        await store.close()
