"""The policy benchmark, small: three router processes, one store, and every part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparsity_bench.policies import latency, replicas, scale
from sparsity_bench.policies.run import Counts, measure
from sparsity_serving.benchmark import percentile, spread
from support.tiny import tiny_model


async def test_every_goal_is_a_row_and_the_routers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "DOMAINS", 300)
    monkeypatch.setattr(scale, "WRITES", 20)
    monkeypatch.setattr(scale, "DECIDED_BYTES", 400_000)
    monkeypatch.setattr(scale, "LEAST_DECISIONS", 20)
    monkeypatch.setattr(latency, "_PHRASES", 200)
    # A machine may have compiled them a moment later.
    monkeypatch.setattr(latency, "_BEGUN_SECONDS", 0.05)
    # Three routers that are asked all the time leave no core to what is waited for.
    monkeypatch.setattr(replicas, "_POLL_SECONDS", 0.05)
    said: list[str] = []
    counts = Counts(floor=20, edits=2, puts=2, kills=2, large=2, sessions=40)
    rows = await measure(tiny_model(tmp_path), counts, said.append)
    found = {row.name: row for row in rows if row.goal}
    # What is no matter of time holds on any machine.
    for name in (
        "simulated decisions equal to live ones",
        "rollout split, chi-squared",
        "revisions missing or given twice",
        "sessions that changed sides",
    ):
        assert found.pop(name).met
    assert found.keys() == {
        *("decision p50", "decision p99", "edit to effect, p99", "put to effect, p99", "kill switch, p99"),
        *("put to effect, large policy, p99", "kill switch by call, store down, p99"),
        *("kill switch by signal, store down, p99", "kill switch while compiling, p99"),
    }
    assert all(row.value and row.baseline_value for row in found.values())
    assert said


def test_percentiles_and_goals_of_a_spread() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    median, tail, top = spread("x", "s", values, 98.0, "floor", 9.9)
    assert (median.value, tail.value, top.value) == (50, 99, 100)
    assert (tail.met, tail.ratio, tail.goal) == (False, pytest.approx(0.1), "<= 98 s")
