"""One override id, said by several at once or over an outage: the later word holds, and the denser one in doubt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity.v1 import policy_pb2
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage.contents import Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.following.known import Read
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.siblings import Siblings
from sparsity_router.services.policy.kill_switch import delete_override
from sparsity_rpc.errors import NotFoundError, StoreError
from sparsity_serving.background.ending import end_tasks
from support.routers.overrides import ENDED, LOST, read
from support.routers.router import until
from support.stores.valkey import Valkey

KILL = Override("k", Scope.GLOBAL, reason="incident")
MILD = replace(KILL, max_tier=Tier.MODERATE)


@pytest.fixture
async def store() -> AsyncIterator[PolicyStore]:
    with Valkey() as server:
        store = PolicyStore(server.url)
        yield store
        await store.close()


def made(ago: float = 0.0) -> Overrides:
    """Overrides of a router whose present is so many seconds ago."""
    return Overrides(lambda: None, lambda: time.time() - ago)


async def delivered(overrides: Overrides, store: PolicyStore) -> None:
    """Has the store get what it is to have, once."""
    await overrides.give_way(store)
    for override in overrides.waiting():
        assert await overrides.write(store, override)


@pytest.mark.parametrize("first", ["mild", "kill"])
async def test_the_later_of_two_routers_in_an_outage_holds_whoever_delivers_first(
    first: str, store: PolicyStore
) -> None:
    mild, kill = made(200.0), made(100.0)
    mild.put(MILD)
    kill.put(KILL)
    for overrides in (mild, kill) if first == "mild" else (kill, mild):
        await delivered(overrides, store)
    assert (await store.read()).overrides == [KILL]
    assert kill.active() == [KILL]


@pytest.mark.parametrize("ahead", [-120.0, 3.0, 120.0])
async def test_whatever_the_clocks_say_a_denser_word_is_not_replaced(ahead: float, store: PolicyStore) -> None:
    """The router's clock is wrong by so much."""
    overrides = made(-ahead)
    overrides.put(MILD)
    await store.put_override(KILL)
    await delivered(overrides, store)
    assert (await store.read()).overrides == overrides.active() == [KILL]


async def test_what_was_read_before_it_was_set_is_no_later_word(store: PolicyStore) -> None:
    """A clock that is behind makes nothing of what the router knew later."""
    overrides = made(120.0)
    await store.put_override(MILD)
    contents = await store.read()
    await overrides.take_up(Read(contents.overrides, contents.overrides_at, contents.overrides_event), store)
    overrides.put(KILL)
    await delivered(overrides, store)
    assert (await store.read()).overrides == overrides.active() == [KILL]


class Between:
    """A store, and what happens while it is asked."""

    def __init__(self, store: PolicyStore) -> None:
        self.store = store
        self.before: Any = None
        self.after: Any = None

    async def _happens(self, call: Any) -> Any:
        before, after, self.before, self.after = self.before, self.after, None, None
        if before:
            await before()
        answer = await call
        if after:
            await after()
        return answer

    async def put_override(self, override: Override, since: float = 0.0, *told: Any) -> Any:
        return await self._happens(self.store.put_override(override, since, *told))

    async def delete_override(self, override_id: str, revision: int | None = None, *, anyway: bool = False) -> Any:
        return await self._happens(self.store.delete_override(override_id, revision, anyway=anyway))


async def test_one_that_is_set_while_an_older_one_is_written_is_written_last(store: PolicyStore) -> None:
    overrides, between = made(), Between(store)

    thrown = []

    async def throw() -> None:
        overrides.put(KILL)
        thrown.append(asyncio.create_task(overrides.write(store, KILL)))
        await asyncio.sleep(0.05)

    overrides.put(MILD)
    between.before = throw
    asked: Any = between
    assert await overrides.write(asked, MILD)
    assert await thrown[0]
    assert (await store.read()).overrides == overrides.active() == [KILL]


async def test_delivery_leaves_out_what_was_replaced_meanwhile(store: PolicyStore, monkeypatch: Any) -> None:
    monkeypatch.setattr("sparsity_router.following.overrides._RETRY_SECONDS", 0.01)
    overrides, between = made(), Between(store)

    async def throw() -> None:
        overrides.put(KILL)
        assert await overrides.write(store, KILL)

    overrides.put(replace(MILD, id="a"))
    overrides.put(MILD)
    between.before = throw
    asked: Any = SimpleNamespace(
        put_override=between.put_override, delete_override=between.delete_override, word_on=store.word_on
    )
    delivering = asyncio.create_task(overrides.deliver(asked))

    async def none_waits() -> bool:
        return not overrides.waiting()

    await until(none_waits)
    await end_tasks([delivering])
    assert {each.id: each.max_tier for each in (await store.read()).overrides} == {"a": Tier.MODERATE, "k": Tier.DENSE}


def state_of(overrides: Overrides, store: Any) -> Any:
    return SimpleNamespace(follower=SimpleNamespace(overrides=overrides), store=store)


UNKILL = policy_pb2.DeleteOverrideRequest(id="k")


async def test_an_end_that_is_under_way_ends_no_switch_that_is_thrown_after_it(store: PolicyStore) -> None:
    overrides, between = made(), Between(store)
    overrides.put(MILD)
    assert await overrides.write(store, MILD)

    async def thrown() -> None:
        overrides.put(KILL)

    between.after = thrown
    await delete_override(state_of(overrides, between), UNKILL, "ann")
    assert overrides.active() == [KILL]
    assert await overrides.write(store, KILL)
    assert (await store.read()).overrides == overrides.active() == [KILL]


@pytest.mark.parametrize("error", [StoreError("away"), NotFoundError("none")])
async def test_an_end_that_fails_ends_no_switch_that_is_thrown_meanwhile(error: Exception) -> None:
    overrides = made()
    overrides.put(MILD)

    async def fails(override_id: str, *, anyway: bool) -> int:
        overrides.put(KILL)
        raise error

    with pytest.raises(type(error)):
        await delete_override(state_of(overrides, SimpleNamespace(delete_override=fails)), UNKILL, "ann")
    assert overrides.active() == [KILL]
    assert overrides.waiting() == [KILL]


def held(*overrides: Override, revision: int) -> list[Override]:
    return [replace(override, revision=revision) for override in overrides]


def test_what_a_failover_lost_acts_on_and_is_written_anew() -> None:
    overrides = made()
    read(overrides, held(KILL, revision=99), 99)
    read(overrides, [], 97, LOST)
    assert overrides.active() == overrides.waiting() == [KILL]


def test_what_was_handed_over_and_lost_before_it_was_read_is_written_anew() -> None:
    overrides = made()
    read(overrides, [], 98)
    overrides.put(KILL)
    overrides.hand_over(KILL, 99)
    # After a failover to 97 two others wrote.
    read(overrides, [], 99, LOST)
    assert overrides.active() == overrides.waiting() == [KILL]


def test_what_somebody_ended_is_not_taken_for_lost() -> None:
    overrides = made()
    read(overrides, [], 98)
    overrides.put(KILL)
    overrides.hand_over(KILL, 99)
    # A read that was under way, and one of after the end.
    read(overrides, [], 98)
    assert overrides.active() == [KILL]
    assert overrides.waiting() == []
    read(overrides, [], 100, ENDED)
    assert overrides.active() == overrides.waiting() == []


def test_an_end_from_before_a_failover_hides_nothing_from_after_it() -> None:
    overrides = made()
    read(overrides, held(MILD, revision=90), 99)
    overrides.end("k")
    read(overrides, [], 97)
    read(overrides, held(KILL, revision=98), 98)
    assert overrides.active() == [KILL]


def test_a_switch_acts_on_when_a_store_that_is_behind_has_it() -> None:
    overrides = made()
    read(overrides, [], 50)
    overrides.put(KILL)
    overrides.hand_over(KILL, 11)
    assert overrides.active() == [KILL]
    # A read that began before it, and one of after it.
    read(overrides, [], 10)
    assert overrides.active() == [KILL]
    read(overrides, held(KILL, revision=11), 11)
    assert overrides.active() == [KILL]


@pytest.mark.parametrize(("there", "acts"), [(KILL, KILL), (replace(MILD, target="x"), KILL)])
def test_a_late_answer_replaces_nothing_denser(there: Override, acts: Override) -> None:
    overrides = made()
    overrides.put(MILD if there == KILL else KILL)
    read(overrides, held(there, revision=7), 7)
    overrides.hand_over(MILD if there == KILL else KILL, 6)
    assert overrides.active() in ([there], [acts])


def test_lost_numbers_that_were_given_again_hide_no_loss() -> None:
    other = replace(MILD, id="z")
    overrides = made()
    read(overrides, held(KILL, revision=40), 40)
    read(overrides, held(other, revision=40), 40, LOST)
    assert {override.id for override in overrides.active()} == {"k", "z"}
    back = made()
    read(back, held(KILL, revision=40), 42)
    read(back, held(other, revision=40), 40, LOST)
    assert {override.id for override in back.active()} == {"k", "z"}


def test_a_loss_is_published_though_the_same_acts() -> None:
    published: list[int] = []
    overrides = Overrides(lambda: published.append(1))
    read(overrides, held(KILL, revision=40), 50)
    count = len(published)
    read(overrides, [], 0, LOST)
    assert (len(published), overrides.waiting()) == (count + 1, [KILL])


def test_an_end_at_an_emptied_store_is_not_undone() -> None:
    overrides = made()
    read(overrides, held(KILL, revision=40), 50)
    assert overrides.end("k")
    read(overrides, [], 0)
    assert overrides.active() == overrides.waiting() == []


async def test_what_was_ended_since_a_failover_is_not_written_anew_by_who_reads_late(store: PolicyStore) -> None:
    overrides = made()
    overrides.stored(Read(held(KILL, revision=40), 50, f"{int((time.time() - 1.0) * 1000)}-0"))
    await store.put_override(KILL)
    await store.delete_override("k")
    contents = await store.read()
    await overrides.take_up(Read(contents.overrides, contents.overrides_at, contents.overrides_event), store)
    assert overrides.active() == overrides.waiting() == []


async def test_a_milder_one_that_was_set_after_a_denser_was_read_is_a_later_word(store: PolicyStore) -> None:
    overrides = made()
    await store.put_override(KILL)
    contents = await store.read()
    await overrides.take_up(Read(contents.overrides, contents.overrides_at, contents.overrides_event), store)
    overrides.put(MILD)
    await delivered(overrides, store)
    assert (await store.read()).overrides == overrides.active() == [MILD]


async def test_what_is_set_again_and_again_is_written_once_each(store: PolicyStore) -> None:
    overrides, writes = made(), []

    async def put(override: Override, since: float, *told: Any) -> int:
        writes.append(override)
        await asyncio.sleep(0.02)
        return await store.put_override(override, since, *told)

    asked: Any = SimpleNamespace(put_override=put, delete_override=store.delete_override)
    ways = [replace(KILL, reason=f"{number}") for number in range(10)]

    async def said(override: Override) -> bool:
        overrides.put(override)
        return await overrides.write(asked, override)

    assert all(await asyncio.gather(*map(said, ways)))
    assert len(writes) <= len(ways)
    assert (await store.read()).overrides == overrides.active() == [ways[-1]]
    assert overrides.waiting() == []


async def test_what_a_store_holds_unreadably_is_not_written_back(store: PolicyStore) -> None:
    overrides = made()
    overrides.put(KILL)
    unreadable = replace(KILL, reason="unreadable")

    async def word_on(_: object) -> Word:
        return Word(unreadable, is_later=True)

    asked: Any = SimpleNamespace(word_on=word_on)
    await overrides.give_way(asked)
    assert overrides.waiting() == []
    assert overrides.active() == [unreadable]


async def test_processes_tell_each_other_when_an_override_was_set(tmp_path: Path) -> None:
    first, second = made(500.0), made()
    Siblings(tmp_path, first)
    other = Siblings(tmp_path, second)
    first.put(KILL)
    other.look()
    assert second.local() == first.local()
