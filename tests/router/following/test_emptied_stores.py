"""A store that was emptied, and that several routers write to anew: no older word of theirs undoes a later one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity.v1 import policy_pb2
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage import scripts
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.known import Read
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.own import Own
from sparsity_router.following.siblings import Siblings
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.services.policy.kill_switch import delete_override
from sparsity_rpc.errors import StoreError
from support.routers.overrides import Place

KILL = Override("k", Scope.GLOBAL, reason="incident")
MILD = replace(KILL, max_tier=Tier.MODERATE)
OTHER = Override("other", Scope.DOMAIN, "rag", reason="r")


def made(ago: float = 0.0) -> Overrides:
    """Overrides of a router; of what is set there it is so many seconds ago."""
    return Overrides(lambda: None, lambda: time.time() - ago)


def is_in(override: Override, there: list[Override]) -> bool:
    return any(replace(each, revision=0) == override for each in there)


async def unkill(overrides: Overrides, store: Any) -> None:
    follower = SimpleNamespace(overrides=overrides)
    router: Any = SimpleNamespace(follower=follower, store=store)
    await delete_override(router, policy_pb2.DeleteOverrideRequest(id="k"), "ann")


async def others(place: Place, count: int) -> None:
    for _ in range(count):
        await place.store.put_override(OTHER)


# What the emptied store counts to before the router hears of it: less than it knows of, and more.
@pytest.mark.parametrize("counted", [0, 4])
async def test_an_end_that_was_said_there_is_believed_by_who_set_it_while_the_store_was_away(
    place: Place, counted: int
) -> None:
    first = made(600.0)
    await others(place, 3)
    await place.read(first)
    first.put(KILL)
    place.become({})
    await place.store.put_override(KILL, time.time() - 600.0)
    await place.store.delete_override("k")
    await others(place, counted)
    await place.read(first)
    await first.deliver_once(place.store)
    assert not is_in(KILL, first.active())
    assert not is_in(KILL, await place.holds())


@pytest.mark.parametrize("counted", [0, 4])
async def test_a_denser_one_that_was_said_there_later_is_not_written_over(place: Place, counted: int) -> None:
    first = made(600.0)
    await others(place, 3)
    await place.read(first)
    first.put(MILD)
    place.become({})
    await place.store.put_override(KILL, time.time() - 60.0)
    await others(place, counted)
    await place.read(first)
    await first.deliver_once(place.store)
    assert is_in(KILL, first.active())
    assert is_in(KILL, await place.holds())


@pytest.mark.parametrize("counted", [0, 4])
async def test_who_knows_an_older_one_and_writes_it_anew_ends_no_kill_switch(place: Place, counted: int) -> None:
    stale, fresh = made(), made()
    await place.store.put_override(MILD)
    await place.read(stale)
    await asyncio.sleep(0.01)
    await place.store.put_override(KILL)
    await place.read(fresh)
    place.become({})
    await others(place, counted)
    for router in (stale, fresh):
        await place.read(router)
        await router.deliver_once(place.store)
    await place.read(stale)
    assert is_in(KILL, fresh.active())
    assert is_in(KILL, await place.holds())


async def test_one_that_was_set_in_an_outage_outlasts_an_older_one_that_is_written_anew(place: Place) -> None:
    now = time.time()
    at: dict[str, float] = {"ago": 600.0}
    one, two = made(), Overrides(lambda: None, lambda: time.time() - at["ago"])
    await place.store.put_override(MILD, now - 1200.0)
    contents = await place.store.read()
    for router in (one, two):
        await router.take_up(
            Read(contents.overrides, contents.overrides_at, f"{int((now - 1100) * 1000)}-0"), place.store
        )
    two.put(KILL)
    at["ago"] = 0.0
    place.become({})
    await place.read(two)
    await place.read(one)
    for router in (one, two):
        await router.deliver_once(place.store)
    assert is_in(KILL, two.active())
    assert is_in(KILL, await place.holds())


async def test_an_end_that_the_store_keeps_no_event_of_is_believed(place: Place, tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "snapshot.json")
    await place.store.put_override(KILL)
    contents = await place.store.read()
    about = {"overrides_at": contents.overrides_at, "overrides_event": contents.overrides_event}
    file.save(contents.revision, [], contents.overrides, **about)
    await place.store.delete_override("k")
    await others(place, 20)
    place.raw.xtrim(scripts.EVENTS, maxlen=5, approximate=False)
    follower = PolicyFollower(place.store, 300.0, file)
    await follower.start()
    await follower.overrides.deliver_once(place.store)
    assert not is_in(KILL, await place.holds())


async def test_what_ran_out_in_a_store_that_is_away_keeps_none_from_its_end(place: Place) -> None:
    class Away:
        async def delete_override(self, *_: Any, **__: Any) -> int:
            raise StoreError("away")

    overrides = made()
    await place.store.put_override(replace(KILL, expire_time=time.time() - 5))
    await place.read(overrides)
    overrides.put(KILL)
    await unkill(overrides, Away())
    assert not is_in(KILL, overrides.active())


async def test_what_a_router_knew_long_since_is_no_later_word_for_having_been_read_again(place: Place) -> None:
    at = {"ago": 600.0}
    one, two = Overrides(lambda: None, lambda: time.time() - at["ago"]), made()
    await place.store.put_override(MILD, time.time() - 1200)
    contents = await place.store.read()
    for router in (one, two):
        known = f"{int((time.time() - 700) * 1000)}-0"
        await router.take_up(Read(contents.overrides, contents.overrides_at, known), place.store)
    # Set by one that is cut off; the store goes on for the other one, is emptied, and gets the older one anew.
    one.put(KILL)
    at["ago"] = 0.0
    await others(place, 1)
    await place.read(two)
    place.become({})
    for router in (two, one):
        await place.read(router)
        await router.deliver_once(place.store)
    assert is_in(KILL, one.active())


async def test_what_was_known_when_it_was_relaxed_is_no_later_word_after_a_failover(place: Place) -> None:
    router = made()
    await others(place, 1)
    await place.store.put_override(KILL)
    behind = place.state()
    await others(place, 1)
    await place.read(router)
    await asyncio.sleep(0.01)
    router.put(MILD)
    place.become(behind)
    await place.read(router)
    await router.deliver_once(place.store)
    assert is_in(MILD, router.active())


@pytest.mark.parametrize("counted", [0, 4])
async def test_what_was_known_when_it_was_set_is_known_after_a_restart(
    place: Place, tmp_path: Path, counted: int
) -> None:
    file, before, event = SnapshotFile(tmp_path / "snapshot.json"), made(600.0), f"{int((time.time() - 700) * 1000)}-0"
    await others(place, 3)
    contents = await place.store.read()
    await before.take_up(Read(contents.overrides, contents.overrides_at, event), place.store)
    before.put(MILD)
    file.save(3, [], before.active(), before.local(), overrides_at=3, overrides_event=event)
    place.become({})
    await place.store.put_override(KILL, time.time() - 60)
    await others(place, counted)
    follower = PolicyFollower(place.store, 300.0, file)
    await follower.start()
    await follower.overrides.deliver_once(place.store)
    assert is_in(KILL, await place.holds())


async def test_a_clock_that_moves_while_the_store_is_asked_keeps_no_word_of_its_from_counting(place: Place) -> None:
    router = made(600.0)

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(place.store, name)

        async def word_on(self, asked: Any) -> Any:
            word = await place.store.word_on(asked)
            router.clock_moved(0.0003)
            return word

        async def delete_override(self, *about: Any, **more: Any) -> int:
            revision = await place.store.delete_override(*about, **more)
            router.clock_moved(0.0003)
            return revision

    slow: Any = Slow()
    router.put(KILL)
    await place.store.put_override(KILL, time.time() - 600)
    await place.store.delete_override("k")
    await router.deliver_once(slow)
    assert not is_in(KILL, await place.holds())
    router.put(KILL)
    await unkill(router, slow)
    await router.deliver_once(place.store)
    assert not is_in(KILL, await place.holds())


async def test_a_sibling_that_starts_later_knows_what_was_known_when_an_override_was_set(
    place: Place, tmp_path: Path
) -> None:
    first, second = made(600.0), made()
    told = Siblings(tmp_path, first)
    await place.read(first)
    first.put(MILD)
    told.look()
    await place.store.put_override(KILL, time.time() - 60)
    await place.read(second)
    Siblings(tmp_path, second).look()
    assert is_in(MILD, second.active())
    await second.deliver_once(place.store)
    assert is_in(KILL, await place.holds())


async def test_an_emptied_store_that_counts_on_has_ended_nothing(place: Place) -> None:
    router = made()
    await place.store.put_override(KILL)
    await place.read(router)
    place.become({})
    place.raw.set(scripts.REVISION, 100)
    await others(place, 1)
    await place.read(router)
    await router.deliver_once(place.store)
    assert is_in(KILL, router.active())


async def test_a_timed_one_that_was_set_by_a_clock_behind_lasts_after_a_restart(place: Place, tmp_path: Path) -> None:
    class Ahead:
        def __getattr__(self, name: str) -> Any:
            return getattr(place.store, name)

        async def read(self) -> Any:
            return (await place.store.read())._replace(clock_offset=600.0)

    file, ahead = SnapshotFile(tmp_path / "snapshot.json"), Ahead()
    own = Own(replace(KILL, expire_time=time.time() + 300), time.time(), 0, "token")
    file.save(0, [], [own.override], [own], overrides_at=0, overrides_event="")
    source: Any = ahead
    follower = PolicyFollower(source, 300.0, file)
    await follower.start()
    ends = [override.expire_time for override in follower.overrides.active()]
    assert ends == [pytest.approx(follower.now() + 300, abs=30)]


async def test_one_that_was_set_anew_after_its_end_outlasts_a_failover_to_that_end(place: Place) -> None:
    # The router's clock is behind by as much as an answer may take.
    router = made(2.0)
    await place.store.put_override(KILL)
    await place.read(router)
    await place.store.delete_override("k")
    await asyncio.sleep(0.3)
    behind = place.state()
    router.put(KILL)
    assert await router.write(place.store, KILL)
    place.become(behind)
    await place.read(router)
    await router.deliver_once(place.store)
    assert is_in(KILL, router.active())


def test_a_clock_that_moves_to_and_fro_lengthens_no_override() -> None:
    overrides = made()
    overrides.put(replace(KILL, expire_time=1000.0))
    for _ in range(10):
        overrides.clock_moved(-0.8)
        overrides.clock_moved(0.8)
    assert overrides.active()[0].expire_time == 1000.0
    overrides.clock_moved(60.0)
    assert overrides.active()[0].expire_time == pytest.approx(1060.0)


async def test_who_was_cut_off_for_long_relaxes_no_kill_switch_that_it_did_not_know(place: Place) -> None:
    router = made()
    await others(place, 1)
    await place.read(router)
    await place.store.put_override(KILL, time.time() - 3600.0)
    router.put(MILD)
    # As if its write lay an hour back, before what is looked at.
    events: Any = place.raw.xrange(scripts.EVENTS)
    place.raw.delete(scripts.EVENTS)
    for number, (_, fields) in enumerate(events, 1):
        place.raw.xadd(scripts.EVENTS, fields, id=f"{int((time.time() - 3600) * 1000)}-{number}")
    await router.deliver_once(place.store)
    assert is_in(KILL, await place.holds())
    assert is_in(KILL, router.active())
