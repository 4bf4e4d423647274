"""The router benchmark, small: every way to the worker gives the whole answer, and every goal is a row."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from sparsity_bench import processes, timing
from sparsity_bench.policies import replicas
from sparsity_bench.router import paths, peers, pressure, run
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from support.stores.valkey import Valkey
from support.tiny import tiny_model

SMALL = run.Plan(requests=40, soak=1000, overload_seconds=1.0, cancels=3, changes=2, peers=())


async def test_every_goal_is_measured_beside_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "RAMP_SECONDS", 0.5)
    # Three routers that are asked all the time leave no core to what is waited for.
    monkeypatch.setattr(replicas, "_POLL_SECONDS", 0.05)
    said: list[str] = []
    rows = await run.measure(tiny_model(tmp_path), SMALL, said.append)
    goals = [row.name for row in rows if row.goal]
    assert goals == [
        *("decision in process, p50", "decision in process, p99") * 2,
        *("relay adds, p50", "relay, CPU a request", "relay, CPU a request, 32 at once", "Route, p50"),
        *("Route, CPU a request", "Route, CPU a request, 32 at once", "Route, rate, 32 at once"),
        *("stream relay, CPU a message", "stream relay, CPU a token", "HTTP adds to relay, CPU a request"),
        "resident memory of a router",
        *("edit to effect, p99", "kill switch, p99", "goodput under overload", "p99 of the urgent under overload"),
        *("cancel to abort at the worker, p99", "memory after a soak"),
    ]
    assert all(row.baseline for row in rows if row.goal and row.unit in ("us", "s"))
    assert said


async def test_a_peer_is_measured_by_its_own_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server like the backend itself stands for a router: what is tested is the harness.
    peer = peers.Peer("http-double", "1", "-m sparsity_bench.router.http_backend --port {port}")
    monkeypatch.setattr(peers.Peer, "program", property(lambda _: Path(sys.executable)))
    own = timing.Path(added=2.0, cpu=2.0, chunk=2.0, large=2.0)
    rows = await peers.measure({"relay": own}, "some text", tmp_path, 20, lambda _: None, [peer])
    assert [row.baseline for row in rows] == ["http-double 1"] * 4
    assert [row.value for row in rows] == [2.0] * 4
    assert all(row.ratio == pytest.approx(row.baseline_value / 2) for row in rows if row.baseline_value is not None)


def test_a_peer_that_cannot_be_installed_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    assert not peers.install(peers.Peer("no-such-router", "1", ""), said.append)
    assert "no-such-router 1 cannot be installed and is left out" in said[-1]


async def test_overload_that_breaks_a_request_gives_no_figure(tmp_path: Path) -> None:
    async with pressure._router(tiny_model(tmp_path), tmp_path, 1, 0.0) as (stub, _, worker):
        worker.stop(5.0)
        with pytest.raises(EngineError, match="UNAVAILABLE"):
            await pressure._offer(stub, 2 * pressure.URGENT_A_SECOND, 0.5, random.Random(1))


async def test_a_router_that_can_use_no_worker_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_SECONDS", 4.0)
    model = tiny_model(tmp_path)
    worker = processes.mock_worker(tmp_path, ModelTokenizer(tiny_model(tmp_path / "another")))
    with Valkey() as server:
        router = processes.router(tmp_path, model, server.port, worker.address, "--detect", "off")
        with pytest.raises(EngineError, match="router did not serve in 4 s"):
            async with processes.running(worker, router):
                pass


def test_a_broken_answer_gives_no_figure() -> None:
    with pytest.raises(EngineError, match="3 messages came, not 4"):
        paths.check(4, 3)
