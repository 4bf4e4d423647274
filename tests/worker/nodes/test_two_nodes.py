"""Two worker processes on this machine as two nodes of one engine, a rank each, beside both ranks on one node."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity.v1 import inference_pb2, worker_pb2
from support.ports import free_port
from support.tiny import tiny_weights
from support.workers.engine import Worker
from support.workers.profiles import profile_document

AGGRESSIVE = inference_pb2.TIER_AGGRESSIVE


class Group(NamedTuple):
    """The nodes of one engine, the first first, and where each answers probes."""

    nodes: list[Worker]
    probes: list[str]

    def end(self) -> None:
        for node in self.nodes:
            node.channel.close()
            if node.process.poll() is None:
                for process in psutil.Process(node.process.pid).children(recursive=True):
                    process.kill()
                node.process.kill()
            node.process.wait()


def group(model: Path, folder: Path) -> Group:
    """Two nodes that start."""
    probes, address = [f"127.0.0.1:{free_port()}" for _ in range(2)], f"127.0.0.1:{free_port()}"
    nodes = [
        Worker(
            model, folder, f"node-{rank}", *OPTIONS, "--nodes", "2", "--node-rank", f"{rank}",
            "--nodes-address", address, "--health-listen", probes[rank], "--drain-seconds", "120",
            tiers="dense,aggressive", documents=[profile_document()], asked=AGGRESSIVE,
        )
        for rank in range(2)
    ]  # fmt: skip
    return Group(nodes, probes)


OPTIONS = ("--tensor-parallel", "2", "--chunked-prefill-tokens", "256", "--measured-share", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("model"), positions=2048, head_dim=16)


@pytest.fixture
def two(model: Path, tmp_path: Path) -> Iterator[Group]:
    started = group(model, tmp_path)
    try:
        started.nodes[0].wait()
        yield started
    finally:
        started.end()


def status(address: str, service: str) -> str:
    """What a probe of Kubernetes' is told."""
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        told = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20, wait_for_ready=True)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(told.status))


def prompts() -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(256) for _ in range(length)] for length in (40, 300, 900, 1500)]


def test_two_nodes_answer_and_account_as_one_does_and_end_together(two: Group, model: Path, tmp_path: Path) -> None:
    leader, follower = two.nodes
    documents = [profile_document()]
    one = Worker(model, tmp_path, "one", *OPTIONS, tiers="dense,aggressive", documents=documents, asked=AGGRESSIVE)
    try:
        one.wait()
        for number, prompt in enumerate(prompts()):
            for tier in (AGGRESSIVE, inference_pb2.TIER_DENSE):
                ours, theirs = (worker.ask(prompt, 8, salt=f"{number}", tier=tier) for worker in (leader, one))
                assert ours.tokens == theirs.tokens
                assert ours.completion.sparsity == theirs.completion.sparsity
                assert (ours.completion.sparsity.prefill_density < 1) == (tier == AGGRESSIVE and len(prompt) >= 256)
        own, alone = (w.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest()) for w in (leader, one))
        assert own.engine.tensor_parallel == 2
        assert [each.proof.density for each in own.tiers] == [each.proof.density for each in alone.tiers]
        assert [each.proof.kernel_calls for each in own.tiers] == [each.proof.kernel_calls for each in alone.tiers]
    finally:
        assert one.stop() == 0
    # A follower is alive and ready, and serves nobody.
    assert [status(two.probes[1], service) for service in ("liveness", "readiness")] == ["SERVING", "SERVING"]
    with pytest.raises(grpc.RpcError) as refused:
        follower.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    # Told to read files anew, as node 0 may be, it has none.
    follower.process.send_signal(signal.SIGHUP)
    # Told to end before node 0 is, it computes on for what node 0 still has.
    follower.process.terminate()
    while status(two.probes[1], "readiness") == "SERVING":
        pass
    assert status(two.probes[1], "liveness") == "SERVING"
    assert leader.ask(prompts()[1], 8).tokens
    assert leader.stop() == 0
    assert follower.process.wait(60) == 0
    assert "computes for" in follower.log()
    assert "ends as node 0 did" in follower.log()


def test_a_follower_ends_with_an_error_when_node_0_is_killed(two: Group) -> None:
    leader, follower = two.nodes
    assert status(two.probes[1], "readiness") == "SERVING"
    for process in psutil.Process(leader.process.pid).children(recursive=True):
        process.kill()
    leader.process.kill()
    assert follower.process.wait(120) == 2
    assert "node 1: a rank failed, or node 0 at" in follower.log()
    assert not psutil.pid_exists(follower.process.pid)
