"""A kernel that fails, and scores that are no numbers, in a real engine: an error for each caller, and no token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_rpc.errors import EngineLostError
from sparsity_rpc.status import died, to_error
from sparsity_worker.plugin.choosing.scores import require_finite
from support.ports import free_port
from support.tiny import tiny_weights
from support.workers import failing_worker
from support.workers.engine import Worker, worker_request

_END_SECONDS = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Stream(threading.Thread):
    """A request that is read beside others, to its end."""

    def __init__(self, worker: Worker, prompt: list[int], new: int) -> None:
        super().__init__()
        self._call = worker.stub.Generate(worker_request(prompt, new), timeout=120)
        self.tokens: list[int] = []
        self.completed = False
        self.error: Any = None
        self.start()

    def run(self) -> None:
        try:
            for message in self._call:
                self.tokens += message.response.token_ids
                self.completed |= message.response.HasField("completion")
        except grpc.RpcError as error:
            self.error = error


class Failing(Worker):
    """A worker whose attention fails on purpose, and what probes of it are told."""

    def __init__(self, folder: Path) -> None:
        self._probes = f"127.0.0.1:{free_port()}"
        options = ["--health-listen", self._probes, "--measured-share", "0"]
        program = "support.workers.failing_worker"
        super().__init__(tiny_weights(folder / "model"), folder, "fails", *options, program=program)

    def told(self, service: str) -> list[int]:
        """What a probe is told of a service from now on, until nobody answers."""
        found: list[int] = []
        with grpc.insecure_channel(self._probes) as channel:
            try:
                for told in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
                    found.append(told.status)
            except grpc.RpcError:
                pass
        return found


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Failing]:
    started = Failing(tmp_path)
    try:
        started.wait()
        yield started
    finally:
        started.channel.close()
        started.process.kill()
        started.process.wait(_END_SECONDS)


class Watched(threading.Thread):
    """What probes are told of a service meanwhile."""

    def __init__(self, worker: Failing, service: str) -> None:
        super().__init__()
        self._worker, self._service = worker, service
        self.found: list[int] = []
        self.start()

    def run(self) -> None:
        self.found = self._worker.told(self._service)


def prompt(tokens: int) -> list[int]:
    return [7 + place * 31 % 200 for place in range(tokens)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("length", "before", "why"),
    [
        (failing_worker.RAISES - 20, 20, failing_worker.REASON),
        (failing_worker.NUMBERLESS, 0, "scores are not finite"),
    ],
    ids=["raises", "nan"],
)
def test_no_answer_comes_of_attention_that_fails(worker: Failing, length: int, before: int, why: str) -> None:
    watched = [Watched(worker, service) for service in ("liveness", "readiness")]
    right = worker.ask(prompt(length), before).tokens if before else []
    assert len(right) == before
    other = Stream(worker, prompt(50), 1900)
    while not other.tokens:
        time.sleep(0.01)
    asked = Stream(worker, prompt(length), 100)
    for stream in (asked, other):
        stream.join(_END_SECONDS)
        assert not stream.completed
        assert isinstance(to_error(stream.error), EngineLostError), stream.error
        assert "engine failed with this request in flight" in stream.error.details()
        # A router takes it to few other workers only.
        assert died(stream.error)
    # What was drawn before stands, though it may not all have come: of a prompt that cannot be attended, nothing.
    assert asked.tokens == right[: len(asked.tokens)]
    assert worker.process.wait(_END_SECONDS) == 2
    for each in watched:
        each.join(_END_SECONDS)
        assert each.found == [SERVING, NOT_SERVING]
    assert why in worker.log()
    assert "sparsity-worker: worker fails: a process of its engine failed" in worker.log()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_score_that_is_no_finite_number_is_enough(value: float) -> None:
    logits = torch.full((4, 1000), 6e4, dtype=torch.float16)
    require_finite(None, logits)
    logits[2, 3] = value
    with pytest.raises(RuntimeError, match="not finite"):
        require_finite(None, logits)


def test_infinities_of_both_signs_do_not_make_up_for_each_other() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 0], logits[0, 1] = torch.inf, -torch.inf
    with pytest.raises(RuntimeError, match="not finite"):
        require_finite(None, logits)


@pytest.mark.timeout(600)
def test_a_real_engine_that_takes_fewer_requests_is_not_served(tmp_path: Path) -> None:
    worker = Worker(tiny_weights(tmp_path / "model"), tmp_path, "few", "--max-requests", "5000")
    try:
        assert worker.process.wait(300) == 2
        told = "--max-requests: 5000 were asked for, and SGLang takes 4096 at once with 8192 tokens of KV cache;"
        assert told in worker.log()
    finally:
        worker.channel.close()
        worker.process.kill()
        worker.process.wait(60)
