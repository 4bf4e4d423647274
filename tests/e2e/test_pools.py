"""A worker for each tier, with real engines: `sparsity up --pools`, of another model, with profiles of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from e2e.conftest import START_SECONDS, small_model
from sparsity_router.prompts.corpus import excerpt
from support.routers.embedded import embedded

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_the_demo_gets_every_tier_right_and_another_pool_serves_when_a_worker_is_killed(tmp_path: Path) -> None:
    with embedded(tmp_path, "--pools", *small_model(tmp_path), seconds=START_SECONDS) as service:
        rows = {row["tier"]: row for row in service.json("status")["workers"]}
        assert rows["TIER_DENSE"]["backend"] == "torch_native"
        for tier in ("TIER_MODERATE", "TIER_AGGRESSIVE"):
            assert rows[tier]["backend"] == "sparsity"
            assert 0 < rows[tier]["probe_density"] < 1
        demo = service.json("demo", "--no-kill", "--new-tokens", "8")
        assert len(demo) == 10
        assert all(row["ok"] for row in demo), demo
        assert any(0 < row["density"] < 1 for row in demo if row["tier"] != "dense")
        chat = service.json("generate", "What is the capital of France?", "--domain", "support-chat")
        assert chat["worker_id"] == "worker-dense"
        pid = json.loads((tmp_path / "up.json").read_text())["workers"]["aggressive"]["pid"]
        # Held still, it is in the midst of the prompt when it ends, however quick the machine.
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(3.0, os.kill, (pid, signal.SIGKILL)).start()
        read = ("--domain", "rag", "--raw", "--max-new-tokens", "2")
        answer = service.json("generate", excerpt(6_000), *read)
        assert answer["decision"]["tier"] == "TIER_MODERATE"
        assert answer["decision"]["reason"] == "REASON_TIER_UNAVAILABLE"
        assert answer["worker_id"] == "worker-moderate"
        assert 0 < answer["sparsity"]["prefill_density"] < 1
