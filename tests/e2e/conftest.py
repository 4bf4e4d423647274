"""The real system: `sparsity up` with one SGLang engine of every tier, Valkey and an OTLP receiver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.routers.embedded import SPARSITY, Embedded, embedded
from support.telemetry.otlp import Receiver

START_SECONDS = 900.0
__all__ = ["SPARSITY", "System", "system"]


@dataclass
class System(Embedded):
    """The running system."""

    receiver: Receiver


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    receiver = Receiver()
    sent_to = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with embedded(tmp_path_factory.mktemp("state"), seconds=START_SECONDS, **sent_to) as running:
        yield System(**vars(running), receiver=receiver)
    receiver.stop()
