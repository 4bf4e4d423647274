from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from sparsity_policies.decisions.costs import NO_SHAPES
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.model import Reason, Signals, Tier
from sparsity_policies.storage.decisionlog import AuditEvent, DecisionLog
from sparsity_policies.storage.scripts import AUDIT, DECISIONS
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.observing import recorder as module
from sparsity_router.observing.observer import EndedRequest, Observer
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics
from sparsity_rpc.errors import StoreError
from sparsity_serving.background.ending import end_tasks
from support.fault_proxy import FaultProxy
from support.routers.rig import Policies
from support.routers.router import until
from support.stores.snapshots import snapshot
from support.stores.valkey import Valkey
from support.telemetry.metrics import Meter


class Log:
    """Takes entries, or fails."""

    def __init__(self) -> None:
        self.down = False
        self.entries: list[Entry] = []
        self.events: list[AuditEvent] = []

    async def append(self, entries: Any, events: Any) -> None:
        if self.down:
            raise StoreError("down")
        self.entries += entries
        self.events += events


def entry(number: int) -> Entry:
    return Entry(0.0, f"{number}", Signals(1, 1), "rag", 1, Tier.DENSE, Reason.LENGTH_BAND)


def record(recorder: Recorder, made: Entry) -> None:
    recorder.decision(made.decision_id, lambda: made)


def event(number: int) -> AuditEvent:
    return AuditEvent("ann", "peer", "PutPolicy", f"{number}", "", "OK")


async def test_what_the_store_cannot_take_waits_in_order_and_the_oldest_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_HELD", 8)
    log = Log()
    recorder = Recorder(log)  # type: ignore[arg-type]
    log.down = True
    for number in range(6):
        record(recorder, entry(number))
        recorder.audit(event(number))
    with pytest.raises(StoreError):
        await recorder.flush()
    for number in range(6, 12):
        record(recorder, entry(number))
    log.down = False
    await recorder.flush()
    assert len(log.entries) <= 12
    names = [int(found.decision_id) for found in log.entries]
    assert names == sorted(names)
    assert names[-1] == 11
    assert [found.target for found in log.events] == [f"{number}" for number in range(6)]


@pytest.mark.parametrize("lost", [False, True])
async def test_what_is_under_way_when_the_router_ends_is_written_once(lost: bool) -> None:
    """Whether the store's answer comes late, or it never got what was sent to it."""
    with Valkey() as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            store = PolicyStore(f"redis://{proxy.address}/0", timeout=30.0)
            recorder = Recorder(DecisionLog(store.redis))
            assert await store.redis.ping()
            record(recorder, entry(1))
            recorder.audit(event(1))

            def written() -> list[Any]:
                with server.client() as raw:
                    return [fields for stream in (DECISIONS, AUDIT) for _, fields in raw.xrange(stream)]

            proxy.unanswered, proxy.silent = True, lost
            job = asyncio.create_task(recorder.run())

            async def under_way() -> bool:
                return not recorder._entries if lost else len(written()) == 2

            await until(under_way)
            await end_tasks([job])
            ending = asyncio.create_task(recorder.flush())
            await asyncio.sleep(0.1)
            if lost:
                proxy.cut()
            proxy.unanswered = proxy.silent = False
            await ending
            assert len(written()) == 2
            await store.close()


async def test_what_fails_under_way_when_the_router_ends_is_written_once_more() -> None:
    log, asked, down = Log(), asyncio.Event(), asyncio.Event()
    recorder = Recorder(log)  # type: ignore[arg-type]
    append = log.append

    async def fails(entries: Any, events: Any) -> None:
        asked.set()
        await down.wait()
        raise StoreError("down")

    log.append = fails  # type: ignore[method-assign]
    record(recorder, entry(1))
    recorder.audit(event(1))
    job = asyncio.create_task(recorder.run())
    await asked.wait()
    log.append = append  # type: ignore[method-assign]
    await end_tasks([job])
    ending = asyncio.create_task(recorder.flush())
    await asyncio.sleep(0)
    assert not log.entries
    down.set()
    await ending
    assert (log.entries, log.events) == ([entry(1)], [event(1)])


async def test_the_rate_of_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log = Log()
    recorder = Recorder(log, per_second=2.0)  # type: ignore[arg-type]
    for number in range(500):
        record(recorder, entry(number))
    await recorder.flush()
    assert len(log.entries) == 120
    clock[0] += 5.0
    for number in range(500):
        record(recorder, entry(number))
    await recorder.flush()
    assert len(log.entries) == 130


async def test_without_a_log_nothing_is_kept() -> None:
    recorder = Recorder(None)
    record(recorder, entry(1))
    recorder.audit(event(1))
    await recorder.flush()
    assert recorder.dropped == 0


def test_an_entry_bears_the_time_of_the_store() -> None:
    policies: Any = Policies(snapshot())
    policies.now = lambda: 1234.5
    kept: list[Entry] = []
    recorder: Any = type("Kept", (), {"decision": lambda self, decision_id, entry: kept.append(entry())})()
    observer = Observer(policies, recorder, GuardMonitor(policies, None), RequestMetrics(NO_SHAPES, Meter().meter))
    signals = Signals(1, 1, domain="rag")
    observer.ended(EndedRequest("d", signals, decide(signals, policies.snapshot)))
    assert [entry.time for entry in kept] == [1234.5]
