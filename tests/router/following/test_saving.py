"""What is on the disk when a router ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_policies.threads import BUILDS
from sparsity_router.config import RouterConfig
from sparsity_router.following import saving
from sparsity_router.following.acting import KILL_SWITCH_ID
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_serving.background.ending import end_tasks
from support.routers.router import running, until
from support.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    for policy in shipped_policies("small-context"):
        (folder / f"{policy.domain}.yaml").write_text(dump_yaml(policy))
    return folder


def switched(file: Path) -> bool:
    return file.exists() and KILL_SWITCH_ID in SnapshotFile(file).load().local


@pytest.mark.parametrize("why", ["busy", "failing"])
async def test_a_switch_just_before_the_end_outlasts_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Whether every thread is busy with policies, or a write that failed waits for its next turn."""
    file, free, failed = tmp_path / "snapshot.json", threading.Event(), threading.Event()
    options: dict[str, Any] = {"policy_dir": folder, "snapshot_file": file, "drain_seconds": 0.1}
    config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), None, "127.0.0.1:0", **options)
    save = SnapshotFile.save

    def saved(disk: SnapshotFile, *arguments: Any, **named: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        save(disk, *arguments, **named)

    async def there() -> bool:
        return file.exists()

    async def tried() -> bool:
        return failed.is_set()

    busy: list[asyncio.Task[bool]] = []
    async with running(config):
        await until(there)
        if why == "busy":
            busy = [asyncio.create_task(BUILDS.run(free.wait)) for _ in range(8)]
            await asyncio.sleep(0)
        else:
            monkeypatch.setattr(SnapshotFile, "save", saved)
        os.kill(os.getpid(), signal.SIGUSR1)
        if why == "failing":
            await until(tried)
    ended_with = switched(file)
    free.set()
    await asyncio.gather(*busy)
    assert ended_with


class Stuck(SnapshotFile):
    """A disk that answers when it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.free = threading.Event(), threading.Event()

    def save(self, *arguments: Any, **named: Any) -> None:
        self.asked.set()
        self.free.wait()
        super().save(*arguments, **named)


async def test_the_last_write_is_given_up_on_and_none_undoes_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_LAST_SECONDS", 0.05)
    file, disk = tmp_path / "snapshot.json", Stuck(tmp_path / "snapshot.json")
    follower = PolicyFollower(PolicyFolder(folder), 300.0, disk)
    await follower.start()
    following = asyncio.create_task(follower.follow())

    async def asked() -> bool:
        return disk.asked.is_set()

    await until(asked)
    await end_tasks([following])
    follower.overrides.kill()
    await follower.saving.last()
    assert "not written within" in follower.unsaved
    disk.free.set()

    async def written() -> bool:
        return switched(file)

    await until(written)
    # It is there once: nothing is left to be written.
    (tmp_path / "snapshot.json").unlink()
    await follower.saving.last()
    assert not file.exists()
