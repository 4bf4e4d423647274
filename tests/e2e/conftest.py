"""The real system: `sparsity up` with one SGLang engine of every tier, Valkey and an OTLP receiver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from sparsity.v1 import worker_pb2, worker_pb2_grpc
from support.routers.embedded import SPARSITY, Embedded, embedded
from support.telemetry.otlp import Receiver
from support.tiny import tiny_weights
from support.workers.profiles import moderate_document, profile_document

START_SECONDS = 900.0
__all__ = ["SPARSITY", "System", "small", "small_model", "system"]


@dataclass
class System(Embedded):
    """The running system."""

    receiver: Receiver


@contextmanager
def _running(state: Path, *options: str) -> Iterator[System]:
    receiver = Receiver()
    sent_to = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with embedded(state, *options, seconds=START_SECONDS, **sent_to) as running:
        yield System(**vars(running), receiver=receiver)
    receiver.stop()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with _running(tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The same with :func:`small_model`."""
    folder = tmp_path_factory.mktemp("small")
    with _running(folder, *small_model(folder)) as running:
        yield running


def small_model(folder: Path) -> list[str]:
    """Options for a model of random weights, of a token a byte, that reads a long prompt in a moment."""
    options = ["--model", str(tiny_weights(folder / "model", positions=32_768, head_dim=16))]
    for document in (moderate_document(), profile_document()):
        path = folder / f"{document['tier']}.yaml"
        path.write_text(yaml.safe_dump(document))
        options += ["--profile", str(path)]
    return options


def load(system: System, tier: str) -> Any:
    with grpc.insecure_channel(system.worker_address(tier)) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        return next(iter(stub.WatchLoad(worker_pb2.WatchLoadRequest(), timeout=30)))


def eventually(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def finish(stream: Any) -> tuple[str, Any]:
    text, completion = "", None
    for response in stream:
        text += response.text
        completion = response.completion if response.HasField("completion") else completion
    return text, completion
