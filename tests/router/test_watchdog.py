"""An event loop that stands still: who notices, and what works all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import grpc
import pytest
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity_serving.health import Health
from sparsity_serving.watchdog import Watchdog, signals
from support.ports import free_port
from support.routers.rig import until


def hold(seconds: float) -> None:
    """What a callback must not do."""
    time.sleep(seconds)


def liveness(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="liveness"), timeout=2.0
        )
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_a_stall_is_told_and_fails_liveness_past_its_bound(caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        health = Health([])
        await health.serve(address)
        watchdog = Watchdog(health.alive, bound=2.5)

        def probe() -> None:
            for _ in range(3):
                seen.append((liveness(address), watchdog.stalled))
                time.sleep(1.7)

        prober = threading.Thread(target=probe)
        await asyncio.sleep(0.3)
        assert watchdog.stalled == 0.0
        prober.start()
        hold(4.5)
        await asyncio.sleep(0.6)
        await asyncio.to_thread(prober.join)
        await until(lambda: watchdog.stalled == 0.0)
        assert (liveness(address), watchdog.stalls) == ("SERVING", 1)
        watchdog.stop()
        await health.stop()

    asyncio.run(main())
    (first, _), (short, for_short), (long, for_long) = seen
    assert (first, short, long) == ("SERVING", "SERVING", "NOT_SERVING")
    assert 0.5 < for_short < 2.5 < for_long
    assert "stood still for" in caplog.text
    assert "test_watchdog.py" in caplog.text
    assert "runs again" in caplog.text


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("busy", [True, False])
def test_a_signal_acts_while_a_callback_holds_the_loop_and_while_the_loop_waits(run: object, busy: bool) -> None:
    acted: list[float] = []

    async def main() -> None:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        with signals({signal.SIGUSR1: lambda: acted.append(time.monotonic())}):
            timer.start()
            if busy:
                started = time.monotonic()
                while time.monotonic() - started < 1.0:
                    pass
                assert acted, "it waited for the loop"
            else:
                await asyncio.sleep(1.0)
                assert acted, "the loop kept it waiting"

    before = signal.getsignal(signal.SIGUSR1)
    run(main())  # type: ignore[operator]
    assert signal.getsignal(signal.SIGUSR1) is before
    assert len(acted) == 1


def test_a_process_whose_loop_stands_still_ends_when_it_is_told_to(tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, signal, time
        from sparsity_serving import watchdog
        watchdog._END_SECONDS = 0.5

        async def main():
            dog = watchdog.Watchdog()
            with watchdog.signals({signal.SIGTERM: dog.must_end}):
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)

        asyncio.run(main())
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(10.0) == 1
        assert process.stderr is not None
        assert b"stuck.py" in process.stderr.read()
