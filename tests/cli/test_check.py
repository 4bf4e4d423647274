"""`sparsity check` says what does not work, and `sparsity status` what must be mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_cli.main import app
from sparsity_router.config import RouterConfig
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.services.fleet import FleetService
from support.routers.rig import DENSE
from support.routers.router import running, until
from support.routers.two_models import two_models
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer
from typer.testing import CliRunner


async def counts(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    async for response in answer(worker, request, context):
        if response.HasField("completion"):
            response.completion.usage.completion_tokens = 3
        yield response


async def test_stale_policies_fail_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    get_fleet = FleetService.GetFleet

    async def counted(service: FleetService, request: Any, context: Any) -> Any:
        asked.append(request)
        return await get_fleet(service, request, context)

    monkeypatch.setattr(FleetService, "GetFleet", counted)
    model = tiny_model(tmp_path)
    worker = await FakeWorker("d", DENSE, model, behaviour=counts).start()
    with Valkey() as server:
        config = RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", policy_ttl=6.0)
        async with running(config) as router:
            await router.ready()
            command = ["check", "--router", router.address, "--domain", "rag"]
            result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 0, result.stdout
            assert len(asked) == 1
            server.stop()
            async with asyncio.timeout(60.0):
                while result.exit_code == 0:
                    await asyncio.sleep(0.5)
                    result = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert result.exit_code == 4
            assert "FAILED  policies  policies were last confirmed" in result.stdout
    await worker.stop()


async def test_each_of_several_models_is_asked_and_shown_by_its_name(tmp_path: Path) -> None:
    async def command(*words: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, [*words, "--router", both.router.address])

    async with two_models(tmp_path, worker={"behaviour": counts}) as both:
        checked = await command("check", "--domain", "low")
        # The second has no chat template, which the check's question wants.
        assert checked.exit_code == 4
        assert (
            "tiny: dense 1 of 1 ready, moderate 1 of 1 ready, aggressive 1 of 1 ready; wordy: dense" in checked.stdout
        )
        assert "FAILED  route     wordy: " in checked.stdout
        shown = (await command("status")).stdout
        assert [line.split()[:3] for line in shown.splitlines() if line.startswith((" t ", " w "))] == [
            ["t", "tiny", "ready"],
            ["w", "wordy", "ready"],
        ]
        explained = await command("explain", "y y y", "--raw", "--domain", "low", "--model", "words")
        assert "model wordy, 3 prompt tokens" in explained.stdout
    async with two_models(tmp_path / "again", worker={"behaviour": counts}, chats=True) as both:
        checked = await command("check", "--domain", "low")
        assert checked.exit_code == 0, checked.stdout
        assert "tiny: 3 tokens by t for" in checked.stdout
        assert "; wordy: 3 tokens by w for" in checked.stdout


async def test_a_disk_that_cannot_be_written_is_told_by_status_and_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    async def command(name: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, [name, "--router", router.address])

    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0")
        config = replace(config, snapshot_file=tmp_path / "policies.json", queue_seconds=0.0)
        async with running(config) as router:
            # Every few seconds what is there is said to be current: that, too, must end nobody.
            await asyncio.sleep(0.5)
            assert "Read-only" not in (await command("status")).stdout
            monkeypatch.setattr(SnapshotFile, "confirm", fails)
            monkeypatch.setattr(SnapshotFile, "save", fails)

            async def told() -> bool:
                return "--snapshot-file: [Errno 30] Read-only" in (await command("status")).stdout.replace("\n", " ")

            await until(told)
            checked = await command("check")
            assert checked.exit_code == 4
            assert "FAILED  files     --snapshot-file: [Errno 30] Read-only file system; a restart" in checked.stdout
            await router.edit(bands=[(0, inference_pb2.TIER_DENSE)])
            await router.becomes("TIER_DENSE")
            monkeypatch.undo()

            async def mended() -> bool:
                return "ok      files     as they should be" in (await command("check")).stdout

            await until(mended)
