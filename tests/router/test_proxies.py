"""Proxies that the environment names are for the rest of the world."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ports import free_port
from support.routers.rig import DENSE, rig
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker


@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", "https_proxy"])
async def test_workers_are_reached_past_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for excepted in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(excepted, raising=False)
    model = tiny_model(tmp_path)
    worker = FakeWorker("d", DENSE, model)
    async with rig(model, worker) as r:
        # The rig waits for the router to know its worker; its own calls go by a channel of the test's.
        assert r.fleet.workers[0].capabilities
