"""A store that was emptied, failed over or cut off: what it lacks was ended only if it says so."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity.v1 import policy_pb2
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage.contents import Asked, Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.services.policy.kill_switch import delete_override
from sparsity_rpc.errors import StoreError
from support.routers.overrides import LOST, Place, read

KILL = Override("k", Scope.GLOBAL, reason="incident")
MILD = replace(KILL, max_tier=Tier.MODERATE)
OTHER = Override("other", Scope.DOMAIN, "rag", reason="r")
UNKILL = policy_pb2.DeleteOverrideRequest(id="k")


def made() -> Overrides:
    return Overrides(lambda: None)


@pytest.mark.parametrize("writes", [1, 2, 5])
async def test_a_store_that_was_emptied_and_counts_anew_has_ended_nothing(place: Place, writes: int) -> None:
    """Whether it counts to less than the override's number by the next read, to the same, or to more."""
    overrides = made()
    await place.store.put_override(OTHER)
    await place.store.put_override(KILL)
    await place.read(overrides)
    place.become({})
    for _ in range(writes):
        await place.store.put_override(OTHER)
    await place.read(overrides)
    assert sorted(each.id for each in overrides.active()) == ["k", "other"]
    await overrides.deliver_once(place.store)
    assert sorted(each.id for each in await place.holds()) == ["k", "other"]
    await place.store.delete_override("k")
    await place.read(overrides)
    assert overrides.active() == [OTHER]
    assert overrides.waiting() == []


async def test_an_operators_end_ends_it_though_the_store_was_emptied_since(place: Place) -> None:
    overrides = made()
    for _ in range(3):
        await place.store.put_override(KILL)
    await place.read(overrides)
    place.become({})
    await place.store.put_override(KILL)
    await place.store.delete_override("k")
    await place.read(overrides)
    assert overrides.active() == overrides.waiting() == []


async def test_an_older_one_of_a_replica_takes_no_switchs_place(place: Place) -> None:
    overrides = made()
    await place.store.put_override(KILL)
    await place.store.delete_override("k")
    await place.store.put_override(MILD)
    behind = place.state()
    await place.store.put_override(KILL)
    await place.read(overrides)
    place.become(behind)
    await place.read(overrides)
    assert overrides.active() == [KILL]
    await overrides.deliver_once(place.store)
    assert await place.holds() == [KILL]


async def test_an_older_end_of_a_replica_ends_no_switch(place: Place) -> None:
    overrides = made()
    await place.store.put_override(KILL)
    await place.store.delete_override("k")
    behind = place.state()
    await place.store.put_override(KILL)
    await place.read(overrides)
    place.become(behind)
    for _ in range(3):
        await place.store.put_override(OTHER)
    await place.read(overrides)
    assert KILL in overrides.active()
    assert overrides.waiting() == [KILL]


async def test_a_milder_one_that_was_set_since_holds(place: Place) -> None:
    overrides = made()
    await place.store.put_override(OTHER)
    await place.store.put_override(KILL)
    await place.read(overrides)
    place.become({})
    await place.store.put_override(MILD)
    await place.read(overrides)
    assert MILD in overrides.active()
    assert overrides.waiting() == [OTHER]


@pytest.mark.parametrize("writes", [0, 1, 4])
async def test_a_write_that_a_failover_lost_before_anybody_read_it_is_written_anew(place: Place, writes: int) -> None:
    overrides = made()
    await place.store.put_override(OTHER)
    await place.read(overrides)
    behind = place.state()
    overrides.put(KILL)
    assert await overrides.write(place.store, KILL)
    place.become(behind)
    for _ in range(writes):
        await place.store.put_override(OTHER)
    await place.read(overrides)
    assert overrides.waiting() == [KILL]
    await overrides.deliver_once(place.store)
    assert KILL in await place.holds()


def state_of(overrides: Overrides, store: Any) -> Any:
    return SimpleNamespace(follower=SimpleNamespace(overrides=overrides), store=store)


async def test_what_is_ended_at_a_store_that_has_lost_it_comes_back_by_no_other_router(place: Place) -> None:
    first, second = made(), made()
    await place.store.put_override(KILL)
    for overrides in (first, second):
        await place.read(overrides)
    place.become({})
    await delete_override(state_of(first, place.store), UNKILL, "ann")
    for overrides in (first, second):
        await place.read(overrides)
        await overrides.deliver_once(place.store)
        assert overrides.active() == []
    assert await place.holds() == []


class Cut:
    """A store whose answers do not arrive, or that is not reached at all."""

    def __init__(self, store: PolicyStore, *lost: str, away: tuple[str, ...] = ()) -> None:
        self.store, self.lost, self.away = store, set(lost), set(away)

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            if name in self.away:
                raise StoreError("away")
            answer = await getattr(self.store, name)(*arguments, **named)
            if name in self.lost:
                raise StoreError("no answer in time")
            return answer

        return call


async def test_a_write_whose_answer_was_lost_is_not_written_again_after_it_was_ended(place: Place) -> None:
    overrides = made()
    overrides.put(KILL)
    cut: Any = Cut(place.store, "put_override")
    assert not await overrides.write(cut, KILL)
    # At another router, at once.
    await place.store.delete_override("k")
    await overrides.deliver_once(place.store)
    assert await place.holds() == overrides.active() == []


async def test_a_write_whose_answer_was_lost_is_taken_for_written(place: Place) -> None:
    overrides = made()
    overrides.put(KILL)
    cut: Any = Cut(place.store, "put_override")
    assert not await overrides.write(cut, KILL)
    revision = await place.store.revision_number()
    await overrides.deliver_once(place.store)
    assert (overrides.waiting(), overrides.active(), await place.holds()) == ([], [KILL], [KILL])
    assert await place.store.revision_number() == revision


@pytest.mark.parametrize("lost", ["put_override", "delete_override"])
async def test_what_was_ended_before_its_write_was_known_of_does_not_come_back(place: Place, lost: str) -> None:
    overrides = made()
    overrides.put(KILL)
    if lost == "put_override":
        cut: Any = Cut(place.store, lost)
        assert not await overrides.write(cut, KILL)
        cut.away = {"delete_override"}
        await delete_override(state_of(overrides, cut), UNKILL, "ann")
    else:
        cut = Cut(place.store, away=(lost,))
        put = place.store.put_override

        async def ended_meanwhile(*arguments: Any) -> int:
            overrides.end("k", 0)
            return await put(*arguments)

        cut.put_override = ended_meanwhile
        assert await overrides.write(cut, KILL)
    assert (overrides.active(), await place.holds()) == ([], [KILL])
    await overrides.deliver_once(place.store)
    await place.read(overrides)
    assert await place.holds() == overrides.active() == []


async def test_an_end_that_is_owed_ends_nothing_that_was_set_since(place: Place) -> None:
    overrides = made()
    overrides.put(KILL)
    cut: Any = Cut(place.store, "put_override")
    assert not await overrides.write(cut, KILL)
    overrides.end("k", 0)
    await place.store.put_override(KILL)
    await overrides.deliver_once(place.store)
    assert await place.holds() == [KILL]


async def test_one_that_is_set_again_while_it_is_written_is_not_left_to_the_first_write(place: Place) -> None:
    """Alike to the letter: it was ended between the two."""
    overrides, cut = made(), Cut(place.store)
    put = place.store.put_override

    async def ended_and_set_again(*arguments: Any) -> int:
        revision = await put(*arguments)
        await delete_override(state_of(overrides, place.store), UNKILL, "ann")
        overrides.put(KILL)
        return revision

    cut.put_override = ended_and_set_again
    overrides.put(KILL)
    asked: Any = cut
    assert await overrides.write(asked, KILL)
    assert overrides.waiting() == [KILL]
    await overrides.deliver_once(place.store)
    assert await place.holds() == overrides.active() == [KILL]


async def test_an_end_is_refused_while_a_store_that_is_away_holds_one_beneath(place: Place) -> None:
    overrides = made()
    await place.store.put_override(KILL)
    await place.read(overrides)
    overrides.put(MILD)
    with pytest.raises(StoreError):
        await delete_override(state_of(overrides, Cut(place.store, away=("delete_override",))), UNKILL, "ann")
    assert overrides.active() == [MILD]


async def test_while_the_store_gives_no_word_what_it_lacks_acts_and_what_it_has_too(place: Place) -> None:
    overrides = made()
    await place.store.put_override(KILL)
    await place.read(overrides)
    await place.store.delete_override("k")
    await place.store.put_override(OTHER)
    await place.read(overrides, Cut(place.store, away=("word_on",)))
    assert sorted(each.id for each in overrides.active()) == ["k", "other"]
    assert overrides.waiting() == []
    # It is asked again at the next read.
    await place.read(overrides)
    assert overrides.active() == [OTHER]


async def test_what_ran_out_is_not_written_anew(place: Place) -> None:
    overrides = made()
    read(overrides, [replace(KILL, expire_time=time.time() - 1.0, revision=4)], 5)
    read(overrides, [], 5, LOST)
    assert overrides.active() == overrides.waiting() == []


async def test_of_a_file_from_before_the_stores_later_word_is_known_by_time(place: Place, tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "snapshot.json")
    await place.store.put_override(OTHER)
    await place.store.put_override(KILL)
    contents = await place.store.read()
    file.save(2, [], contents.overrides, age=1.0, overrides_at=2)
    path = tmp_path / "snapshot.json"
    path.write_text(path.read_text().replace(', "overrides_event": ""', ""))
    place.become({})
    await place.store.put_override(KILL)
    await place.store.delete_override("k")
    follower = PolicyFollower(place.store, 300.0, file)
    await follower.start()
    assert [each.id for each in follower.snapshot.overrides] == ["other"]


async def test_what_was_lost_is_known_as_such_after_a_restart(place: Place, tmp_path: Path) -> None:
    """An operator's end from before the router had it is no later word; one from after it is, however soon."""
    file, before = SnapshotFile(tmp_path / "snapshot.json"), made()
    await place.store.put_override(KILL)
    await place.read(before)
    place.become({})
    await place.read(before)
    assert before.waiting() == [KILL]
    file.save(0, [], before.active(), before.local(), overrides_event="0-0")
    await place.store.delete_override("k", anyway=True)
    follower = PolicyFollower(place.store, 300.0, file)
    await follower.start()
    assert follower.snapshot.overrides == ()
    assert follower.overrides.waiting() == []


async def test_a_word_is_the_same_later_or_older_by_the_event_that_was_known(place: Place) -> None:
    first = await place.store.put_override(KILL, token="one")
    known = (await place.store.read()).overrides_event
    asked = Asked("k", revision=first, event=known)
    assert await place.store.word_on(asked) == Word(KILL, is_later=False)
    assert await place.store.word_on(Asked("k", time.time() + 5.0, token="one")) == Word(KILL, False, is_same=True)
    await place.store.put_override(MILD, token="two")
    assert await place.store.word_on(asked) == Word(MILD, is_later=True, is_new=True)
    of_one = await place.store.word_on(Asked("k", time.time() + 5.0, token="one"))
    assert of_one == Word(MILD, is_later=True, is_new=True)
    for _ in range(1100):
        place.raw.xadd("{sparsity}:events", {"domain": "x", "revision": 9})
    later = (await place.store.read()).overrides_event
    assert await place.store.word_on(Asked("k", revision=first, event=later)) == Word(MILD, is_later=True)
    assert await place.store.word_on(Asked("k", revision=9, event=later)) == Word(MILD, is_later=False)
    assert await place.store.word_on(Asked("none", revision=0, event="")) == Word(None, is_later=False)


async def test_one_that_somebody_threw_while_a_milder_one_was_on_its_way_holds(place: Place) -> None:
    overrides = made()
    overrides.put(MILD)
    await place.store.put_override(KILL)
    assert await overrides.write(place.store, MILD)
    assert await place.holds() == overrides.active() == [KILL]
    assert overrides.waiting() == []
