"""Options of the nodes that hold one engine, what SGLang is told of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.__main__ import read_config
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import prepare_environment
from sparsity_worker.engine.launching import engine_arguments
from sparsity_worker.nodes import Nodes
from support.tiny import tiny_model

MEETING = ("--nodes-address", "leader.example:7003")


def given(folder: Path, *options: str) -> WorkerConfig:
    return read_config(["--worker-id", "w", "--tiers", "dense", "--model", str(tiny_model(folder)), *options], {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nodes", "2", "--tensor-parallel", "2"), "--nodes-address: give host:port of node 0"),
        (("--nodes", "2", "--node-rank", "2", *MEETING), "--node-rank: must be less than --nodes, 2, not 2"),
        (("--node-rank", "1"), "--node-rank: must be less than --nodes, 1, not 1"),
        (("--node-rank", "-1"), "--node-rank: must be at least 0"),
        (("--nodes", "0"), "--nodes: must be at least 1"),
        (("--nodes", "2", *MEETING), "--tensor-parallel: 1 ranks cannot be shared by 2 --nodes"),
        (("--nodes", "3", "--tensor-parallel", "4", *MEETING), "--tensor-parallel: 4 ranks cannot be shared by 3"),
        (("--nodes", "2", "--tensor-parallel", "2", "--nodes-address", "leader"), "--nodes-address: must be host:port"),
        (("--nodes", "2", "--tensor-parallel", "2", "--nodes-address", "leader:0"), "and no port 0"),
        (("--nodes", "2", "--tensor-parallel", "2", *MEETING, "--engine", "echo"), "--nodes: an echo is one process"),
    ],
)
def test_nodes_that_cannot_hold_one_engine_are_refused(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        given(tmp_path, *options)
    assert said in str(refused.value)


def test_a_worker_ends_with_the_mistake(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsity_worker", "--worker-id", "w", "--tiers", "dense", "--nodes", "2"]
    ended = subprocess.run(
        [*command, "--model", str(tiny_model(tmp_path))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("sparsity-worker: --nodes-address: give host:port")


def test_a_port_for_probes_that_is_taken_is_told_before_the_engine_starts(tmp_path: Path) -> None:
    from sparsity_worker.server import run

    two = ("--nodes", "2", "--node-rank", "1", "--tensor-parallel", "2", *MEETING)
    with pytest.raises(ConfigurationError, match="--health-listen: must be host:port"):
        run(given(tmp_path, *two, "--health-listen", "127.0.0.1:0"))


def test_sglang_is_told_of_the_nodes_and_of_nothing_else_by_node(tmp_path: Path) -> None:
    def told(*options: str) -> dict[str, Any]:
        config = given(tmp_path, *options, "--tensor-parallel", "4")
        return engine_arguments(config, ModelFacts.read(config.model_path), {})

    alone, leader, follower = (
        told(*options) for options in ((), ("--nodes", "2", *MEETING), ("--nodes", "2", "--node-rank", "1", *MEETING))
    )
    assert "nnodes" not in alone
    assert leader == alone | {"nnodes": 2, "node_rank": 0, "dist_init_addr": "leader.example:7003"}
    assert follower == leader | {"node_rank": 1}


def test_only_others_than_the_first_follow() -> None:
    assert [Nodes(2, rank, "a:1").follows for rank in range(2)] == [False, True]
    assert Nodes(4, 3, "[fd00::1]:7003").ranks(8) == 2
    assert not Nodes().follows


def test_ranks_of_a_node_have_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for nodes, bound in ((1, "0,1|2,3|4,5|6,7"), (2, "0,1,2,3|4,5,6,7"), (4, "0,1,2,3,4,5,6,7")):
        monkeypatch.setattr(os, "environ", {})
        prepare_environment("cpu", None, 4, nodes=nodes)
        assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == bound


def test_a_follower_keeps_its_number_through_a_change(tmp_path: Path) -> None:
    config = given(tmp_path, "--nodes", "2", "--node-rank", "1", "--tensor-parallel", "2", *MEETING)
    assert replace(config, dense_backend="triton").nodes == Nodes(2, 1, "leader.example:7003")
