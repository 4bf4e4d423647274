"""The router benchmark, small: every way to the worker gives the whole answer, and every goal is a row."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparsity.errors import EngineError
from sparsity_router.bench import router
from support.tiny import tiny_model


async def test_every_way_is_measured_beside_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiny model has a token a byte and room for 512.
    monkeypatch.setattr(router, "PROMPT_BYTES", 200)
    said: list[str] = []
    rows = await router.measure(tiny_model(tmp_path), 40, said.append)
    goals = [row.name for row in rows if row.goal]
    assert goals == [
        *("relay adds, p50", "relay, CPU a request", "relay, CPU a request, 32 at once", "Route, p50"),
        *("Route, CPU a request", "Route, CPU a request, 32 at once", "stream relay, CPU a message"),
        "resident memory of a router",
    ]
    assert all(row.baseline for row in rows if row.goal and row.unit == "us")
    assert said


def test_a_broken_answer_gives_no_figure() -> None:
    with pytest.raises(EngineError, match="3 messages came, not 4"):
        router._check(4, 3)
