"""A hundred thousand requests, of which a third are given up: memory stays where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparsity_bench.router import pressure
from support.tiny import tiny_model


@pytest.mark.chaos
@pytest.mark.timeout(1500)
async def test_memory_stays_within_five_percent(tmp_path: Path) -> None:
    row = await pressure.soak(tiny_model(tmp_path / "model"), tmp_path, 100_000, print)
    assert row.ratio is not None
    print(f"{row.shape}: drift {1 / row.ratio - 1:+.1%}", end=" ")
    assert row.met
