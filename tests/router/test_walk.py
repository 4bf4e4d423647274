"""A request walks through the rooms of the router as docs/architecture.md tells it, by the entries that it names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from sparsity_policies.decisions.costs import NO_SHAPES
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.observing.observer import Observer
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics
from support.page import rows, words
from support.routers.rig import DENSE, Policies, rig
from support.stores.snapshots import snapshot
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

WALK = rows("## A request")
# By room, module and name; what else stands in a cell is no entry.
ENTRIES = [name for _, _, by, _ in WALK for name in re.findall(r"`(\w+\.\w+\.[\w.]+)`", by)]


@contextmanager
def first_calls(names: list[str]) -> Iterator[list[str]]:
    """Those of `names`, by room, module and name, that are called in this thread, in the order of their first calls."""
    found: dict[str, None] = {}

    def called(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("sparsity_router."):
            name = f"{module.removeprefix('sparsity_router.')}.{frame.f_code.co_qualname}"
            if name in names:
                found.setdefault(name)

    told: list[str] = []
    sys.setprofile(called)
    try:
        yield told
    finally:
        sys.setprofile(None)
        told += found


async def test_a_request_enters_the_rooms_as_the_page_tells(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path))
    policies, metrics = cast(Any, Policies(snapshot())), RequestMetrics(NO_SHAPES, Meter().meter)
    observer = Observer(policies, Recorder(None), GuardMonitor(policies, None), metrics)
    async with rig(tmp_path, worker, observer=observer) as at:
        with first_calls(ENTRIES) as called:
            await at.generate()
    assert called == ENTRIES


def test_the_entries_lie_in_the_rooms_of_their_steps() -> None:
    assert len(ENTRIES) > 8
    for _, rooms, by, _ in WALK:
        entered = {name.partition(".")[0] for name in re.findall(r"`(\w+\.\w+\.[\w.]+)`", by)}
        assert entered == words(rooms)
