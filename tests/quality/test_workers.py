"""Running workers put to the same cases, and the commands of the router's side."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_quality import commands
from sparsity_quality.__main__ import app_of
from sparsity_quality.tasks.cases import Wanted
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from support.workers.fake_worker import FakeWorker, answer, break_off
from typer.testing import CliRunner

OWN = {"context": "the sky is blue", "prompt": "\nThe sky is", "answers": ["blue"]}


async def know(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
    yield inference_pb2.GenerateResponse(text=" bl")
    yield inference_pb2.GenerateResponse(text="ue\nand more")
    async for response in answer(worker, request, context):
        if response.HasField("completion"):
            yield response


def suite(folder: Path, tmp_path: Path, targets: list[str]) -> commands.Suite:
    (tmp_path / "own.jsonl").write_text(json.dumps(OWN))
    return commands.Suite(folder, (), {}, Wanted((512,)), tmp_path / "own.jsonl", targets, (), 0, tmp_path, "cpu")


async def measured(chosen: commands.Suite) -> Any:
    return await asyncio.to_thread(commands.measure, chosen, lambda *_: None, print)


@pytest.fixture
async def workers(folder: Path) -> AsyncIterator[list[FakeWorker]]:
    both = [
        await FakeWorker("sparse", inference_pb2.TIER_AGGRESSIVE, folder).start(),
        await FakeWorker("dense", inference_pb2.TIER_DENSE, folder, know).start(),
    ]
    yield both
    for worker in both:
        await worker.stop()


async def test_workers_are_set_beside_the_dense_one(workers: list[FakeWorker], folder: Path, tmp_path: Path) -> None:
    table, tiers = await measured(suite(folder, tmp_path, [worker.address for worker in workers]))
    dense, sparse = table.standings
    assert (dense.subject.name, dense.tasks, dense.density) == ("dense", {"own": 100.0}, 1.0)
    assert (sparse.tasks, sparse.density, sparse.coverage, sparse.loss) == ({"own": 0.0}, 0.2, 0.95, 100.0)
    assert tiers == {sparse.subject.name: "aggressive"}
    (request,) = workers[0].received
    assert bytes(request.prompt.ids).decode(errors="replace").count("") > 20
    assert request.sampling.max_new_tokens == 32
    again, _ = await measured(suite(folder, tmp_path, [worker.address for worker in workers]))
    assert len(workers[0].received) == 1
    assert [one.tasks for one in again.standings] == [one.tasks for one in table.standings]


async def test_a_dense_worker_must_be_there(workers: list[FakeWorker], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--worker: give a dense worker too"):
        await measured(suite(folder, tmp_path, [workers[0].address]))


async def test_another_tokenizer_is_refused(workers: list[FakeWorker], folder: Path, tmp_path: Path) -> None:
    workers[1].digest = "0" * 64
    with pytest.raises(ConfigurationError, match="with another tokenizer than --model has"):
        await measured(suite(folder, tmp_path, [workers[1].address]))


async def test_a_worker_that_is_not_there_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await measured(suite(folder, tmp_path, ["127.0.0.1:1"]))


async def test_a_stream_that_breaks_off_counts_for_nothing(
    workers: list[FakeWorker], folder: Path, tmp_path: Path
) -> None:
    workers[0].behaviour = break_off
    with pytest.raises(UnavailableError, match="the stream ended without a completion; run again to go on"):
        await measured(suite(folder, tmp_path, [worker.address for worker in workers]))
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 1


async def test_lengths_beyond_the_workers_are_refused(workers: list[FakeWorker], folder: Path, tmp_path: Path) -> None:
    chosen = replace(suite(folder, tmp_path, [workers[1].address]), wanted=Wanted((200_000,)))
    with pytest.raises(ConfigurationError, match="--lengths: dense takes 100000 tokens, not 200000"):
        await measured(chosen)


def test_calibrate_on_a_model_nobody_tuned_for(folder: Path, tmp_path: Path) -> None:
    """Through the router's command line, from the generic profile."""
    out = tmp_path / "learned.yaml"
    command = [str(Path(sys.executable).parent / "sparsity"), "calibrate", "--model", str(folder)]
    command += ["--target", "coverage=0.97", "--length", "2048", "--out", str(out)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"wrote {out}: learned@1" in finished.stdout
    assert "one threshold" in finished.stdout
    assert out.read_text().startswith("# learned: learned from ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["bench", "--model", "/nowhere", "--profile", "generic-aggressive"], "has no tokenizer.json"),
        (["bench", "--model", "{}"], "--profile: give at least one"),
        (["bench", "--model", "{}", "--profile", "nobody"], "profile: 'nobody' is neither a .yaml file"),
        (["bench", "--model", "{}", "--lengths", "many"], "--lengths: must be whole numbers"),
        (["bench", "--model", "{}", "--beside", "x"], "--beside: must be PROFILE= and one of none"),
        (
            ["bench", "--model", "{}", "--profile", "generic-aggressive", "--beside", "x=all"],
            "--beside: x is not",
        ),
        (
            ["bench", "--model", "{}", "--profile", "smollm2-135m-moderate", "--lengths", "1024"],
            "--profile: smollm2-135m-moderate@3: layers.0",
        ),
        (["calibrate", "--model", "{}", "--target", "fast", "--out", "x.yaml"], "--target: must be one of coverage"),
        (
            ["calibrate", "--model", "{}", "--target", "density=0.2", "--out", "x.yaml", "--mean-blocks", "1,3"],
            "--mean-blocks: must be some of 1, 2, 4, not '1,3'",
        ),
    ],
)
def test_a_mistake_is_one_line(options: list[str], message: str, folder: Path) -> None:
    result = CliRunner().invoke(app_of(options[0]), [option.format(folder) for option in options[1:]])
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr.replace("--model: /nowhere ", "")
    assert "Traceback" not in result.stderr


def test_a_mistake_comes_back_through_the_routers_command(folder: Path) -> None:
    command = [str(Path(sys.executable).parent / "sparsity"), "bench", "quality", "--model", str(folder)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.endswith(
        "error: --profile: give at least one; sparsity_worker.profiles has some, or run calibrate\n"
    )


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsity_cli import quality
    from sparsity_cli.main import app

    monkeypatch.setattr(quality, "_NEEDED", ("torch", "no_such_package"))
    result = CliRunner().invoke(app, ["calibrate", "--help"])
    assert result.exit_code == 2
    assert "no_such_package: not installed; run pip install 'sparsity-worker[quality]'" in result.stderr.replace(
        "\n", " "
    )
