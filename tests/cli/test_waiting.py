"""Commands that wait for more than a moment say for what, on stderr."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sparsity.v1 import inference_pb2
from sparsity_cli import console
from sparsity_cli.main import app
from sparsity_router.config import RouterConfig
from support.routers.rig import DENSE
from support.routers.router import running
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.2)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_waited_for_is_told_while_it_lasts(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = StringIO()
    monkeypatch.setattr(console, "err", Console(file=told, force_terminal=terminal))
    with console.waiting("the [first] token"):
        began = time.monotonic()
        while "the [first] token" not in told.getvalue():
            assert time.monotonic() - began < 20
            time.sleep(0.05)
    ended = told.getvalue()
    time.sleep(0.5)
    assert told.getvalue() == ended


def test_what_takes_a_moment_says_nothing_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with console.waiting("a moment"):
        pass
    assert capsys.readouterr().err == ""


async def test_the_first_token_and_each_step_of_a_check_are_waited_for_by_name(tmp_path: Path) -> None:
    async def slowly(own: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        await asyncio.sleep(0.7)
        async for response in answer(own, request, context):
            yield response

    model = tiny_model(tmp_path)
    worker = await FakeWorker("d", DENSE, model).start()
    with Valkey() as server:
        async with running(RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0")) as router:
            await router.ready()
            worker.behaviour = slowly
            for words, told in ((["generate", "hi"], "the first token: "), (["check"], "answer: ")):
                command = [*words, "--router", router.address]
                result = await asyncio.to_thread(CliRunner().invoke, app, command)
                assert told in result.stderr, result.output
                assert told not in result.stdout
    await worker.stop()
