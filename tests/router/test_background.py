"""What nobody foresaw, from outside or inside, ends neither the router nor one of its jobs for good."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sparsity_router.callers.limits import read_rates
from sparsity_router.config import RouterConfig
from sparsity_router.fleet import discovery
from sparsity_router.following import follower
from sparsity_router.relaying import shadow
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.access.access import Access
from sparsity_serving.access.jwt import JwtConfig, JwtVerifier
from sparsity_serving.background import jobs as background
from sparsity_serving.background.ending import end_tasks
from sparsity_serving.background.jobs import JOBS, Jobs
from sparsity_serving.background.reloading import ReloadedFile
from sparsity_serving.background.signalled import SignalledEvent
from support.routers.rig import DENSE, rig
from support.routers.rig import until as becomes
from support.routers.router import running, until
from support.stores.valkey import Valkey
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

# What PyYAML itself raises of each is another thing every time.
ODD_YAML = ["a: 2020-02-31", "a: !!int 9a", 'a: !!int ""', "a: !!bool maybe", "a: !!timestamp x", "[" * 5000]


async def test_a_job_begins_anew_and_the_same_failure_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    jobs, meter, begun = Jobs(), Meter(), []
    jobs.observe(meter.meter)

    async def job() -> None:
        begun.append(len(begun))
        if len(begun) == 4:
            raise OverflowError("another")
        if len(begun) < 6:
            raise RecursionError("deep")

    await asyncio.wait_for(jobs.keep("a job", job), 20)
    assert jobs.failures == Counter({"a job": 5})
    told = [record for record in caplog.records if record.name == "sparsity.background"]
    assert [record.exc_info[0] for record in told if record.exc_info] == [RecursionError, OverflowError]
    assert "test_background.py" in caplog.text
    assert meter.values()["sparsity.background.failures"] == [({"sparsity.job": "a job"}, 5)]


async def test_a_cancelled_job_ends() -> None:
    kept = asyncio.create_task(Jobs().keep("a job", lambda: asyncio.sleep(3600.0)))
    await asyncio.sleep(0.01)
    kept.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(kept, 5)


@pytest.mark.parametrize("answer", ["[]", "null", '{"keys": 3}', "[" * 100_000, '{"keys": [3]}'])
async def test_an_odd_answer_of_the_issuer_changes_no_key(tmp_path: Path, answer: str, caplog: Any) -> None:
    keys = tmp_path / "jwks.json"
    config = JwtConfig("https://id.example", "sparsity", str(keys))
    keys.write_text(answer)
    with pytest.raises(ConfigurationError, match=r"jwt\.keys"):
        JwtVerifier(config)
    keys.write_text(json.dumps({"keys": [{"kty": "oct", "k": "a2V5", "kid": "one"}]}))
    tokens = JwtVerifier(config)
    keys.write_text(answer)
    await tokens.refresh()
    assert "the keys that were read before hold" in caplog.text


async def test_an_answer_of_the_issuer_that_breaks_off_changes_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [{"kty": "oct", "k": "a2V5", "kid": "one"}]}))
    tokens = JwtVerifier(JwtConfig("https://id.example", "sparsity", str(keys)))

    def broken() -> bytes:
        raise http.client.IncompleteRead(b"{")

    monkeypatch.setattr(tokens, "_fetch", broken)
    await tokens.refresh()
    assert "the keys that were read before hold" in caplog.text


@pytest.mark.parametrize("text", ODD_YAML)
async def test_an_odd_edit_of_an_options_file_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text("default: {requests: 1/hour}")
    taken: list[Any] = []
    limits = ReloadedFile("--tenant-limits", file, read_rates, taken.append)
    file.write_text(text)
    await limits.look()
    assert f"--tenant-limits: {file}: cannot be read" in limits.problem
    with pytest.raises(ConfigurationError, match="--access"):
        Access.load(file)
    assert not taken


async def test_a_file_whose_reading_fails_is_told_and_keeps_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")

    def read(path: Path) -> str:
        raise ZeroDivisionError("odd")

    odd = ReloadedFile("--odd", file, read, lambda _: None)
    file.write_text("b")
    await odd.look()
    assert odd.problem == f"--odd: {file}: ZeroDivisionError: odd"


async def test_a_source_of_workers_that_fails_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    model = tiny_model(tmp_path)
    first, second = FakeWorker("first", DENSE, model), await FakeWorker("second", DENSE, model).start()

    class Odd:
        known: tuple[str, ...] = ()
        asked = 0

        async def follow(self) -> AsyncIterator[set[str]]:
            self.asked += 1
            if self.asked < 3:
                raise UnicodeError("label too long")
            yield {second.address}
            await asyncio.Event().wait()

    odd = Odd()
    monkeypatch.setitem(discovery.SOURCES, "odd", lambda _: odd)
    async with rig(model, first, places=("odd:///",)) as r:
        await becomes(lambda: {worker.name for worker in r.fleet.workers} == {"first", "second"})
        assert (await r.generate("hi"))[1].worker_id in ("first", "second")
    assert caplog.text.count("UnicodeError: label too long") == 1
    await second.stop()


async def test_a_router_goes_on_when_its_jobs_fail_and_wants_no_traffic_while_it_follows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy follower that cannot look knows of no kill switch in the store."""
    broken = {"look": False, "shadow": 2}
    look, run = follower.PolicyFollower._look_once, shadow.Shadow.run

    async def odd_look(self: Any) -> None:
        if broken["look"]:
            raise RuntimeError("odd")
        await look(self)

    async def odd_run(self: Any) -> None:
        if broken["shadow"]:
            broken["shadow"] -= 1
            raise RuntimeError("odd, too")
        await run(self)

    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(follower.PolicyFollower, "_look_once", odd_look)
    monkeypatch.setattr(shadow.Shadow, "run", odd_run)
    model = tiny_model(tmp_path)
    worker = await FakeWorker("w", DENSE, model).start()
    before = JOBS.failures.copy()
    with Valkey() as server:
        seconds = {"drain_seconds": 0.1, "max_policy_lag": 1.0, "policy_ttl": 3.0}
        async with running(RouterConfig(model, (worker.address,), server.url, "127.0.0.1:0", **seconds)) as router:
            await router.ready()
            assert JOBS.failures["shadow"] - before["shadow"] == 2
            broken["look"] = True

            async def is_told() -> bool:
                return await router.health() == "NOT_SERVING" and (await router.tier())[1] == "REASON_STALE_POLICY"

            await until(is_told)
            assert JOBS.failures["policies"] > before["policies"]
            broken["look"] = False
            await router.ready()
            assert (await router.tier())[1] != "REASON_STALE_POLICY"
    await worker.stop()


async def test_a_task_that_swallows_a_cancel_is_ended_by_the_next_one() -> None:
    swallowed = asyncio.Event()

    async def deaf_once() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()
        return "never"

    async def fails() -> None:
        raise ValueError("odd")

    tasks = [asyncio.create_task(deaf_once()), asyncio.create_task(fails())]
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5.0):
        deaf, failed = await end_tasks(tasks)
    assert swallowed.is_set()
    assert isinstance(deaf, asyncio.CancelledError)
    assert isinstance(failed, ValueError)


# Signals come every tenth of a millisecond, and find the thread that waits at every place of it.
STORM = """
import signal
from sparsity_serving.background.signalled import SignalledEvent
events = [SignalledEvent()]
signal.signal(signal.SIGALRM, lambda *_: events[-1].set())
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
ended = 0
while ended < 2000:
    ended += events[-1].wait(1e-5)
    events.append(SignalledEvent())
    del events[0]
signal.setitimer(signal.ITIMER_REAL, 0)
print(ended)
"""


def test_a_handler_may_set_it_whatever_the_thread_that_waits_is_doing() -> None:
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2000\n"), done.stderr


def test_it_ends_waits_from_then_on_and_before() -> None:
    event = SignalledEvent()
    assert not event.wait(0.0)
    assert not event.is_set()
    waited: list[bool] = []
    waiting = threading.Thread(target=lambda: waited.append(event.wait(60)))
    waiting.start()
    time.sleep(0.05)
    event.set()
    event.set()
    waiting.join(30)
    assert waited == [True]
    assert event.is_set()
    assert event.wait(60)
