"""What processes of one port tell each other of overrides, late, out of order or not at once; and by whose clock."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity_policies.model import Override, Scope, Tier
from sparsity_policies.storage.contents import Asked, Contents, Cursor, Delta, Word
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.siblings import Siblings
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_rpc.errors import StoreError
from support.routers.overrides import read

KILL = Override("k", Scope.GLOBAL, reason="incident")
MILD = replace(KILL, max_tier=Tier.MODERATE)


def process(folder: Path) -> tuple[Overrides, Siblings]:
    overrides = Overrides(lambda: None)
    return overrides, Siblings(folder, overrides)


def test_an_older_one_that_is_heard_late_takes_no_later_ones_place(tmp_path: Path) -> None:
    (first, one), (second, two) = process(tmp_path), process(tmp_path)
    first.put(MILD)
    second.put(KILL)
    for siblings in (two, one):
        siblings.look()
    assert first.active() == second.active() == [KILL]


def test_an_end_that_is_heard_late_ends_no_later_one(tmp_path: Path) -> None:
    (first, one), (second, two) = process(tmp_path), process(tmp_path)
    first.put(KILL)
    two.look()
    second.end("k", 0)
    first.put(KILL)
    one.look()
    two.look()
    assert first.active() == second.active() == [KILL]
    # What is said here last holds, whatever another process's clock says.
    first._now = lambda: time.time() - 60.0
    first.put(MILD)
    assert first.active() == [MILD]


def test_a_clock_that_is_set_back_reorders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, one), (second, two) = process(tmp_path), process(tmp_path)
    first.put(KILL)
    two.look()
    second.end("k", 0)
    one.look()
    behind = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: behind)
    second.put(KILL)
    two.look()
    one.look()
    late, three = process(tmp_path)
    three.look()
    assert first.active() == second.active() == late.active() == [KILL]


def test_what_could_not_be_told_is_told_later(tmp_path: Path) -> None:
    folder, away = tmp_path / "events", tmp_path / "away"
    folder.mkdir()
    (first, one), (second, two) = process(folder), process(folder)
    folder.rename(away)
    folder.write_text("no folder")
    first.put(KILL)
    one.look()
    folder.unlink()
    away.rename(folder)
    one.look()
    two.look()
    assert first.active() == second.active() == [KILL]


def test_what_cannot_be_read_now_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    (first, _), (second, two) = process(tmp_path), process(tmp_path)
    first.put(KILL)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        two.look()
        two.look()
    assert second.active() == []
    assert caplog.text.count("cannot be read yet") == 1
    two.look()
    assert second.active() == [KILL]


def test_a_switch_that_is_thrown_while_a_read_is_taken_up_acts() -> None:
    """Signals act between any two instructions."""
    overrides = Overrides(lambda: None)
    overrides.put(KILL)
    waiting = overrides._waiting

    def interrupted() -> Any:
        found = waiting()
        overrides.kill()
        return found

    overrides._known.read_at = 9
    overrides._waiting = interrupted  # type: ignore[method-assign]
    read(overrides, [], 3)
    assert sorted(each.id for each in overrides.active()) == ["k", "signal"]


class Clocked:
    """A source with a clock of its own, which is away at first."""

    def __init__(self, ahead: float) -> None:
        self.ahead, self.away = ahead, True

    async def read(self) -> Contents:
        if self.away:
            raise StoreError("away")
        return Contents(Cursor(1, "", ""), [], [], {}, self.ahead)

    async def delta(self, cursor: Cursor) -> Delta | None:
        if self.away:
            raise StoreError("away")
        return Delta(cursor, {}, [], {}, self.ahead)

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        """Nothing is waited for."""

    async def word_on(self, asked: Asked) -> Word:
        return Word(None, is_later=False)

    def resume(self, saved: Contents, age: float) -> bool:
        return False


@pytest.mark.parametrize("heard", [False, True])
async def test_what_was_set_before_the_sources_clock_was_known_is_as_old_by_it(tmp_path: Path, *, heard: bool) -> None:
    file, source = SnapshotFile(tmp_path / "snapshot.json"), Clocked(3600.0)
    file.save(1, [], [], overrides_event="1-0" if heard else "")
    follower = PolicyFollower(source, 300.0, file)
    await follower.start()
    timed = replace(KILL, expire_time=follower.now() + 60.0)
    follower.overrides.put(timed)
    source.away = False
    await follower.refresh()
    (own,) = follower.overrides.local()
    assert follower.now() - own.since < 30.0
    # It was to last for a minute, by whichever clock.
    (acting,) = follower.snapshot.overrides
    assert (acting.expire_time or 0.0) > follower.now() + 30.0
    # After a restart, too.
    file.save(1, [], [timed], [own._replace(since=time.time())], overrides_event="" if not heard else "1-0")
    again = PolicyFollower(source, 300.0, file)
    await again.start()
    (own,) = again.overrides.local()
    assert again.now() - own.since == pytest.approx(3600.0 if heard else 0.0, abs=30.0)


async def test_this_machines_clock_ends_no_timed_switch_when_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Clocked(0.0)
    source.away = False
    follower = PolicyFollower(source, 300.0)
    await follower.start()
    before = follower.now()
    folder = PolicyFolder(tmp_path)
    folder._take(Contents(Cursor(1, "", ""), [], [], {}, 5.0), 0.0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600.0)
    assert follower.now() - before < 60.0
    # What a folder was told by the store beside it is as true as before.
    assert folder._clock_offset == pytest.approx(5.0 - 3600.0, abs=1.0)
