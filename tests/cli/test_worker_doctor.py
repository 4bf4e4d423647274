"""`sparsity worker doctor` against workers without an engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_cli import console
from sparsity_cli.fleet import worker as doctor
from sparsity_cli.fleet.examination import described, described_at
from sparsity_cli.main import app
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import LeaseChecker
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker
from typer.testing import CliRunner

RUNNER = CliRunner()


@contextmanager
def serving(*workers: FakeWorker) -> Iterator[list[str]]:
    """The workers, on a loop of their own; their addresses."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(awaited: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaited, loop).result(20)

    try:
        for worker in workers:
            call(worker.start())
        yield [worker.address for worker in workers]
    finally:
        for worker in workers:
            call(worker.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


async def told(
    worker: FakeWorker, request: Any, context: Any, *, density: float, sparse: int
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """A completion that reports so much."""
    completion = inference_pb2.Completion(worker_id=worker.name)
    completion.usage.prompt_tokens, completion.usage.completion_tokens = len(request.prompt.ids), 4
    completion.sparsity.prefill_density, completion.sparsity.sparse_kernel_calls = density, sparse
    completion.sparsity.kernel_calls = 60
    yield inference_pb2.GenerateResponse(completion=completion)


def run(*arguments: str) -> Any:
    return RUNNER.invoke(app, ["worker", "doctor", *arguments])


def of(addresses: list[str]) -> list[str]:
    return [word for address in addresses for word in ("--worker", address)]


def test_what_workers_are_and_that_they_prune(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    dense = FakeWorker("d", DENSE, model, behaviour=partial(told, density=1.0, sparse=0))
    sparse = FakeWorker("a", AGGRESSIVE, model, behaviour=partial(told, density=0.3, sparse=50), sparse_from=500)
    with serving(dense, sparse) as addresses:
        shown = run(*of(addresses))
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.count("ok  ") == 2
        assert "500 tokens, 4 new" in shown.stdout
        assert "density 0.300 prefill" in shown.stdout
        found = json.loads(run(*of(addresses), "--json").stdout)
        assert [(each["address"], each["problem"]) for each in found] == [(address, "") for address in addresses]
        assert found[1]["sparse"] == "from 500 prompt tokens"
    assert [len(request.prompt.ids) for request in sparse.received] == [500, 500]
    assert [request.tier for request in dense.received] == [DENSE, DENSE]


def test_what_the_device_makes_of_a_tier_is_told() -> None:
    engine = worker_pb2.EngineFacts(summary_bytes=47 << 20, kv_bytes=1000 << 20)
    own = worker_pb2.GetCapabilitiesResponse(tier=AGGRESSIVE, kv_capacity_tokens=400_000, engine=engine)
    at = worker_pb2.TierCapabilities(tier=AGGRESSIVE, crossover="prompts from 8192 tokens; measured on an H200")
    assert dict(described(own))["summaries"] == "47.0 MiB beside the KV cache, the room of 18800 tokens"
    assert dict(described_at(own, at))["crossover"] == "prompts from 8192 tokens; measured on an H200"
    own.engine.kv_bytes, at.crossover = 0, ""
    assert "room" not in dict(described(own))["summaries"]
    assert "crossover" not in dict(described_at(own, at))


async def by_tier(
    worker: FakeWorker, request: Any, context: Any, *, moderate: float = 0.6
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """What a shared worker reports of each tier."""
    density = {DENSE: 1.0, MODERATE: moderate, AGGRESSIVE: 0.3}[request.tier]
    async for response in told(worker, request, context, density=density, sparse=50 * (density < 1)):
        response.completion.sparsity.tier = request.tier
        yield response


def shared(model: Path, **options: Any) -> FakeWorker:
    return FakeWorker("s", DENSE, model, tiers=(DENSE, MODERATE, AGGRESSIVE), sparse_from=500, **options)


def test_every_tier_of_a_shared_worker_is_proved_by_a_request(tmp_path: Path) -> None:
    worker = shared(tiny_model(tmp_path), behaviour=by_tier)
    with serving(worker) as addresses:
        shown = run(*of(addresses))
        assert shown.exit_code == 0, shown.output
        assert "s, dense, moderate, aggressive tiers" in shown.stdout
        for density in ("1.000", "0.600", "0.300"):
            assert shown.stdout.count(f"density {density} prefill") == 1
        (found,) = json.loads(run(*of(addresses), "--json").stdout)
    assert found["problem"] == ""
    assert list(found["tiers"]) == ["aggressive", "dense", "moderate"]
    assert all("start-up" in own and "request" in own for own in found["tiers"].values())
    assert [request.tier for request in worker.received] == [DENSE, MODERATE, AGGRESSIVE] * 2


def test_the_doctor_shows_each_tier_before_it_asks_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.2)
    shown, before = StringIO(), list[tuple[int, bool]]()
    monkeypatch.setattr(doctor, "out", Console(file=shown, width=200))

    async def slowly(own: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        before.append((shown.getvalue().count("4 new in"), "dense, moderate, aggressive tiers" in shown.getvalue()))
        await asyncio.sleep(0.5)
        async for response in by_tier(own, request, context):
            yield response

    with serving(shared(tiny_model(tmp_path), behaviour=slowly)) as (address,):
        result = run("--worker", address)
    assert result.exit_code == 0, result.output
    assert before == [(0, True), (1, True), (2, True)]
    assert shown.getvalue().splitlines()[-1] == f"ok      {address}"
    for tier in ("dense", "moderate", "aggressive"):
        assert f"{address}, a request at {tier}: " in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"behaviour": partial(by_tier, moderate=1.0)}, "problem   moderate: nothing was pruned"),
        ({"behaviour": by_tier, "unproven": (DENSE,)}, "problem   dense: its start-up proof shows sparse kernel calls"),
        (
            {"behaviour": by_tier, "unproven": (AGGRESSIVE,)},
            "aggressive: its start-up proof shows no sparse kernel call",
        ),
    ],
)
def test_the_tier_that_fails_is_named_and_the_others_are_proved(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    worker = shared(tiny_model(tmp_path), **options)
    with serving(worker) as addresses:
        shown = run(*of(addresses))
    assert shown.exit_code == 4
    assert words in shown.stdout
    assert len(worker.received) == 3


def test_an_engine_that_mixes_tiers_up_is_told(tmp_path: Path) -> None:
    async def mixed(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        async for response in by_tier(worker, request, context):
            response.completion.sparsity.tier = AGGRESSIVE
            yield response

    with serving(shared(tiny_model(tmp_path), behaviour=mixed)) as addresses:
        shown = run(*of(addresses))
    assert shown.exit_code == 4
    assert "moderate: asked at moderate, it reports aggressive" in shown.stdout


def test_tune_runs_on_the_workers_side() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from sparsity_cli.main import app; app()", "worker", "tune", "--help"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert shown.returncode == 0
    assert "--chunked-prefill-tokens" in shown.stdout
    assert "sparsity worker tune" in shown.stdout


@pytest.mark.parametrize(
    ("tier", "report", "sparse_from", "words"),
    [
        (AGGRESSIVE, {"density": 1.0, "sparse": 0}, 500, "nothing was pruned"),
        (AGGRESSIVE, {"density": 0.3, "sparse": 5}, 100_000, "no prompt reaches the profile's sparse_from of 100000"),
        (DENSE, {"density": 0.5, "sparse": 5}, 0, "a dense worker reports that it pruned"),
    ],
)
def test_a_worker_that_is_not_what_its_tier_says_fails(
    tmp_path: Path, tier: int, report: dict[str, Any], sparse_from: int, words: str
) -> None:
    worker = FakeWorker("w", tier, tiny_model(tmp_path), behaviour=partial(told, **report), sparse_from=sparse_from)
    with serving(worker) as addresses:
        shown = run(*of(addresses))
    assert shown.exit_code == 4
    assert words in shown.stdout
    assert "1 of 1 workers failed" in " ".join(shown.stderr.split())


def test_an_echo_proves_nothing_and_is_told_as_one(tmp_path: Path) -> None:
    async def echoed(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        completion = inference_pb2.Completion(worker_id=worker.name, unreported="an echo: nothing was attended")
        completion.usage.completion_tokens = 4
        yield inference_pb2.GenerateResponse(completion=completion)

    worker = FakeWorker("e", AGGRESSIVE, tiny_model(tmp_path), behaviour=echoed, engine="echo", sparse_calls=0)
    with serving(worker) as addresses:
        shown = run(*of(addresses))
    assert shown.exit_code == 4
    assert "echo, which runs no model" in shown.stdout
    assert "problem   an echo: nothing was attended" in shown.stdout
    assert "SGLang" not in shown.stdout
    assert "density" not in shown.stdout


def test_leases_are_signed_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    key = tmp_path / "lease.key"
    key.write_text("k" * 32)
    behaviour = partial(told, density=1.0, sparse=0)
    leases = LeaseChecker(LeaseKeys(LeaseKey("", b"k" * 32)), "d", {DENSE})
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "m"), behaviour=behaviour, leases=leases)
    with serving(worker) as addresses:
        assert run(*of(addresses)).exit_code == 4
        assert run(*of(addresses), "--lease-key-file", str(key)).exit_code == 0
        both = run(*of([*addresses, "127.0.0.1:1"]), "--lease-key-file", str(key))
    assert both.exit_code == 4
    assert both.stdout.count("FAILED") == 1
    assert run("--lease-key-file", "/nowhere").exit_code == 2
    assert run("--router", "127.0.0.1:1").exit_code == 4
