"""Tiers of a worker of all of them, beside workers of one tier each."""

from __future__ import annotations

from pathlib import Path

import grpc
import psutil
import pytest
from sparsity.v1 import worker_pb2, worker_pb2_grpc
from sparsity_bench.tiers.apart import workers_apart
from sparsity_bench.tiers.run import SHARED_TOKENS, Pair, Sample, shared_rows, tier_rows
from sparsity_router.embedded.default_model import echo_model
from sparsity_router.embedded.state import Process, Running
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import Tier
from sparsity_rpc.tls import open_channel
from sparsity_serving.engines import ECHO, SGLANG

TIERS = ("dense", "aggressive")


def sample(first: float) -> Sample:
    """A sparse one; two cores compute."""
    return Sample(first, 2 * first, 0.1, 0.3, 0.9)


def pairs(shared: list[float], own: list[float], length: int = SHARED_TOKENS) -> dict[tuple[str, int], list[Pair]]:
    """Of each tier, by times to first token; the aggressive one takes half as long."""
    return {
        (tier, length): [
            Pair(sample(a / (1 + place)), sample(b / (1 + place))) for a, b in zip(own, shared, strict=True)
        ]
        for place, tier in enumerate(TIERS)
    }


@pytest.mark.parametrize(("shared", "met"), [([1.02, 1.02, 1.02], True), ([1.05, 1.05, 1.05], False)])
def test_a_shared_worker_may_take_three_percent_more(shared: list[float], met: bool) -> None:
    rows = shared_rows(pairs(shared, [1.0] * 3), SHARED_TOKENS)
    assert [tuple(row.name.split(", ")[:2]) for row in rows] == [
        (what, tier) for tier in TIERS for what in ("time to first token", "processor time to first token")
    ]
    assert all(row.met is met for row in rows)
    assert rows[0].ratio == pytest.approx(1 / shared[0])
    assert (rows[2].value, rows[2].baseline_value) == (shared[0] / 2, 0.5)
    assert (rows[3].value, rows[3].baseline_value) == (shared[0], 1.0)


def test_pairs_are_compared_so_that_a_busy_while_of_the_machine_has_no_say() -> None:
    rows = shared_rows(pairs([1.0, 3.0, 9.0], [1.0, 3.0, 9.0]), SHARED_TOKENS)
    assert all(row.ratio == 1.0 and row.met for row in rows)


def test_pairs_tell_how_far_they_lie_apart() -> None:
    rows = shared_rows(pairs([1.0, 1.0, 1.0], [0.9, 1.0, 1.25]), SHARED_TOKENS)
    assert all(
        row.ratio == 1.0 and "3 pairs by turns, ratio at the median of 0.900 to 1.250" in row.shape for row in rows
    )


def test_other_lengths_have_no_goal_and_pools_no_such_rows() -> None:
    assert all(row.goal is None for row in shared_rows(pairs([1.0], [1.0], 1024), 1024))
    assert shared_rows({}, SHARED_TOKENS) == []


def test_tiers_are_compared_with_the_dense_one_of_the_same_service() -> None:
    found = {(tier, SHARED_TOKENS): [sample(2.0 / (1 + place))] for place, tier in enumerate(TIERS)}
    rows = {row.name: row for row in tier_rows(found, TIERS, SHARED_TOKENS)}
    sparse = rows["time to first token, aggressive"]
    assert (sparse.value, sparse.baseline_value, sparse.ratio) == (1.0, 2.0, 2.0)
    assert sparse.met


def test_each_tier_gets_a_worker_of_its_own_until_all_is_measured(tmp_path: Path) -> None:
    shared = Process("echo-shared", 1, "a:1", "log")
    model = str(echo_model(tmp_path, print))
    running = Running(1, "a:1", "redis://x", model, dict.fromkeys(TIERS, shared), 1.0, ECHO)
    said: list[str] = []
    with workers_apart(running, {"aggressive": "generic-aggressive"}, said.append) as workers:
        assert list(workers) == list(TIERS)
        for tier, worker in workers.items():
            assert psutil.pid_exists(worker.pid)
            with open_channel(worker.address, None) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                told = stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=30.0)
            assert [each.tier for each in told.tiers] == [Tier[tier.upper()].wire]
    assert [line.split()[0] for line in said] == [f"worker-{tier}-apart" for tier in TIERS]
    with pytest.raises(grpc.RpcError), open_channel(worker.address, None) as channel:
        worker_pb2_grpc.WorkerServiceStub(channel).GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=5.0)


def test_a_worker_that_ends_is_told_with_its_reason(tmp_path: Path) -> None:
    shared = Process("worker-shared", 1, "a:1", "log")
    running = Running(1, "a:1", "redis://x", str(tmp_path), dict.fromkeys(TIERS, shared), 1.0, SGLANG)
    ended = pytest.raises(ConfigurationError, match=r"worker-dense-apart ended with 2: .*--model")
    with ended, workers_apart(running, {}, print):
        pytest.fail("it serves")
