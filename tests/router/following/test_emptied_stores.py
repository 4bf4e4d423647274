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


async def test_who_knows_an_older_one_and_writes_it_anew_ends_no_kill_switch(place: Place) -> None:
    stale, fresh = made(), made()
    await place.store.put_override(MILD)
    await place.read(stale)
    await asyncio.sleep(0.01)
    await place.store.put_override(KILL)
    await place.read(fresh)
    place.become({})
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


async def test_an_end_in_an_emptied_store_is_believed_by_who_wrote_it_and_read_nothing_since(place: Place) -> None:
    first, second = made(), made()
    await others(place, 3)
    await place.read(first)
    first.put(KILL)
    assert await first.write(place.store, KILL)
    await place.read(second)
    place.become({})
    await unkill(second, place.store)
    await place.read(first)
    await first.deliver_once(place.store)
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


def test_a_clock_that_moves_to_and_fro_lengthens_no_override() -> None:
    overrides = made()
    overrides.put(replace(KILL, expire_time=1000.0))
    for _ in range(10):
        overrides.clock_moved(-0.8)
        overrides.clock_moved(0.8)
    assert overrides.active()[0].expire_time == 1000.0
    overrides.clock_moved(60.0)
    assert overrides.active()[0].expire_time == pytest.approx(1060.0)
