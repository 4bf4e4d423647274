from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest
from sparsity_policies.documents.envelope import seal_override
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage import scripts
from sparsity_policies.storage.contents import Asked, Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConfigurationError, ConflictError, NotFoundError, StoreError
from support.stores.valkey import Valkey

POLICIES = shipped_policies("small-context")


async def test_seeding_happens_once_and_never_over_an_edit(store: PolicyStore) -> None:
    assert len(await store.seed(POLICIES)) == len(POLICIES)
    edited = await store.put(POLICIES[0], etag=None, actor="ann", reason="mine")
    assert await store.seed(POLICIES) == []
    contents = await store.read()
    assert contents.revision == len(POLICIES) + 1
    assert next(p for p in contents.policies if p.policy.domain == POLICIES[0].domain) == edited


async def test_compare_and_set(store: PolicyStore) -> None:
    first = await store.put(POLICIES[0], etag="", actor="ann", reason="new")
    with pytest.raises(ConflictError, match="read it and try again"):
        await store.put(POLICIES[0], etag="", actor="bob", reason="new")
    second = await store.put(POLICIES[0], etag=first.etag, actor="ann", reason="again")
    assert second.revision == first.revision + 1
    assert second.etag != first.etag
    with pytest.raises(ConflictError):
        await store.put(POLICIES[0], etag=first.etag, actor="bob", reason="late")


async def test_concurrent_puts_make_dense_revisions(store: PolicyStore) -> None:
    written = await asyncio.gather(
        *(store.put(POLICIES[n % 10], etag=None, actor=str(n), reason="race") for n in range(100))
    )
    assert sorted(stored.revision for stored in written) == list(range(1, 101))


async def test_of_two_editors_with_one_etag_one_wins(store: PolicyStore) -> None:
    base = await store.put(POLICIES[0], etag="", actor="a", reason="r")
    tries = (store.put(POLICIES[0], etag=base.etag, actor=str(n), reason="r") for n in range(8))
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, ConflictError) for result in results) == 7


async def test_garbage_is_told_and_the_rest_is_kept(store: PolicyStore, server: Valkey) -> None:
    await store.seed(POLICIES)
    wrong = json.dumps({"etag": "e", "revision": 1, "time": "0", "actor": "", "reason": "", "body": '{"domain": 3}'})
    raw = server.client()
    raw.hset("{sparsity}:policies", mapping={"rag": "garbage", "code": wrong, "legal": b"\xff\xfe"})
    raw.hset("{sparsity}:overrides", "k", "garbage")
    contents = await store.read()
    assert set(contents.rejected) == {"rag", "code", "legal", "override k"}
    assert len(contents.policies) == len(POLICIES) - 3
    assert contents.overrides[0].max_tier is Tier.DENSE
    # An unreadable document can be written over.
    await store.put(next(p for p in POLICIES if p.domain == "rag"), etag=None, actor="a", reason="repair")
    assert "rag" not in (await store.read()).rejected


async def test_halves_of_surrogate_pairs_are_told_and_the_rest_is_kept(store: PolicyStore, server: Valkey) -> None:
    for policy in POLICIES:
        await store.put(policy, etag=None, actor="ann", reason="r")
    client = server.client()
    envelope = json.loads(client.hget("{sparsity}:policies", "rag"))
    body = json.loads(envelope["body"]) | {"detection": {"literals": ["abc\ud800"]}}
    client.hset("{sparsity}:policies", "rag", json.dumps(envelope | {"body": json.dumps(body)}))
    client.hset("{sparsity}:policies", "code", json.dumps(envelope | {"reason": "\ud800"}))
    override = {"scope": 3, "target": "t", "max_tier": 1, "expire_time": None, "reason": "\ud800", "actor": "ann"}
    client.hset("{sparsity}:overrides", "k", json.dumps(override))
    client.hset("{sparsity}:overrides", "list", "[]")
    contents = await store.read()
    assert contents.rejected.keys() == {"rag", "code", "override k", "override list"}
    assert "half a surrogate pair" in contents.rejected["rag"]
    # It may have been a kill switch.
    assert [override.scope for override in contents.overrides] == [Scope.GLOBAL] * 2
    assert len(contents.policies) == len(POLICIES) - 2


async def test_garbage_in_the_revision_is_a_store_error(store: PolicyStore, server: Valkey) -> None:
    server.client().set("{sparsity}:revision", "many")
    with pytest.raises(StoreError, match="not a number"):
        await store.read()


async def test_overrides(store: PolicyStore) -> None:
    override = Override("k", Scope.DOMAIN, "rag", Tier.MODERATE, 12.5, "why", "ann")
    await store.put_override(override)
    assert (await store.read()).overrides == [override]
    await store.delete_override("k")
    assert (await store.read()).overrides == []
    with pytest.raises(NotFoundError):
        await store.delete_override("k")


async def test_the_last_word_on_an_override_is_told_by_when_it_was_said(store: PolicyStore, server: Valkey) -> None:
    before, override = time.time() - 1.0, Override("k", Scope.GLOBAL)
    assert await store.word_on(Asked("k", before)) == Word(None, is_later=False)
    revision = await store.put_override(override)
    # Whatever was written after it.
    with server.client() as raw:
        for _ in range(1100):
            raw.xadd("{sparsity}:events", {"override": "another", "revision": 1})
    assert await store.word_on(Asked("k", before)) == Word(override, is_later=True, is_new=True)
    assert await store.word_on(Asked("k", before, revision)) == Word(override, is_later=False)
    for later in (time.time() + 1.0, float("inf")):
        assert await store.word_on(Asked("k", later)) == Word(override, is_later=False, is_new=True)
        assert await store.word_on(Asked("k", later, revision)) == Word(override, is_later=False)
    await store.delete_override("k")
    assert await store.word_on(Asked("k", before)) == Word(None, is_later=True, is_new=True)
    # It was said before, and is told now.
    await store.put_override(override, before - 60.0)
    assert await store.word_on(Asked("k", before)) == Word(override, is_later=False, is_new=True)


async def test_a_write_that_was_given_up_and_comes_late_takes_no_denser_ones_place(store: PolicyStore) -> None:
    kill = Override("k", Scope.DOMAIN, "rag", Tier.DENSE)
    mild, now = replace(kill, max_tier=Tier.MODERATE), time.time()
    known = await store.put_override(kill, now)
    with pytest.raises(ConflictError, match="set later"):
        await store.put_override(mild, now - 1.0)
    assert (await store.read()).overrides == [kill]
    # What nobody said later, what was known, and what caps more or for longer, is written.
    for override, since, read_at in (
        (mild, now + 1.0, 0),
        (mild, now - 1.0, known + 1),
        (kill, now - 1.0, 0),
        (replace(kill, scope=Scope.GLOBAL, target=""), now - 1.0, 0),
    ):
        await store.put_override(override, since, read_at=read_at)
        assert (await store.read()).overrides == [override]
    timed = replace(kill, expire_time=time.time() + 60.0, scope=Scope.GLOBAL, target="")
    with pytest.raises(ConflictError):
        await store.put_override(timed, now - 2.0)


async def test_only_the_override_that_is_meant_is_ended(store: PolicyStore) -> None:
    first = await store.put_override(Override("k", Scope.GLOBAL))
    second = await store.put_override(Override("k", Scope.GLOBAL))
    with pytest.raises(NotFoundError):
        await store.delete_override("k", first)
    assert [override.revision for override in (await store.read()).overrides] == [second]
    await store.delete_override("k", second)
    assert (await store.read()).overrides == []


async def test_a_write_that_is_sent_again_is_carried_out_once(store: PolicyStore, server: Valkey) -> None:
    """As the client does whose connection was lost before the answer came."""
    keys = (scripts.OVERRIDES, scripts.REVISION, scripts.EVENTS, scripts.HEAD)
    body = seal_override(Override("k", Scope.GLOBAL))

    async def send(text: str, token: str) -> int:
        (revision,) = await store.redis.eval(scripts.OVERRIDE, 4, *keys, "k", text, 1000, token, 0, "", 0, 0)
        return int(revision)

    first = await send(body, "one")
    assert await send(body, "one") == first
    ended = await send("", "two")
    again = await send(body, "three")
    assert await send("", "two") == ended
    assert [override.revision for override in (await store.read()).overrides] == [again]


async def test_overrides_that_ran_out_go_with_the_next_write(store: PolicyStore, server: Valkey) -> None:
    now = time.time()
    ends = {"long ago": now - 61, "just now": now - 1, "later": now + 60, "never": None}
    for name, expires in ends.items():
        await store.put_override(Override(name, Scope.DOMAIN, "rag", Tier.MODERATE, expires, "why", "ann"))
    server.client().hset("{sparsity}:overrides", "junk", "{")
    await store.put_override(Override("k", Scope.GLOBAL))
    left = {override.id for override in (await store.read()).overrides}
    assert left == {"just now", "later", "never", "junk", "k"}


async def test_an_absent_server_is_a_store_error() -> None:
    store = PolicyStore("redis://127.0.0.1:1/0")
    with pytest.raises(StoreError, match="policy store"):
        await store.read()
    with pytest.raises(ConfigurationError, match="--redis-url"):
        PolicyStore("http://nowhere")


async def test_what_cannot_be_read_can_be_deleted_and_hides_no_older_revision(
    store: PolicyStore, server: Valkey
) -> None:
    rag = next(policy for policy in POLICIES if policy.domain == "rag")
    first = await store.put(rag, etag="", actor="a", reason="r")
    with server.client() as raw:
        raw.hset("{sparsity}:policies", "rag", "garbage")
        raw.xadd("{sparsity}:history:rag", {"envelope": "garbage"}, id="2-0")
        raw.set("{sparsity}:revision", 2)
    assert await store.delete("rag", etag=None, actor="a", reason="r") == 3
    page = await store.history("rag", count=2)
    # Two entries were looked at, and neither can be shown; the next page is there all the same.
    assert (page.revisions, page.below) == ([], 2)
    assert (await store.history("rag", page.below, count=2)).revisions == [first]
