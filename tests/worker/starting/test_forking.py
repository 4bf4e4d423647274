"""The processes of the CPU's engine as forks of the worker: what they have of it, what not, and how all end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sparsity_worker.engine.forking import can_fork
from support.ports import free_port
from support.tiny import tiny_weights
from support.workers.engine import Worker

_END_SECONDS = 60.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    model = tiny_weights(tmp_path_factory.mktemp("model"))
    started = Worker(model, folder, "forks", "--metrics-listen", f"127.0.0.1:{free_port()}", "--measured-share", "0")
    try:
        yield started.wait()
    finally:
        started.channel.close()
        started.process.kill()
        started.process.wait(_END_SECONDS)


def processes(worker: Worker) -> dict[str, psutil.Process]:
    """The engine's, by the names that SGLang gives them."""
    children = psutil.Process(worker.process.pid).children()
    named = {" ".join(child.cmdline()).strip().rpartition("::")[2]: child for child in children}
    return {name: named[name] for name in ("scheduler", "detokenizer")}


def handled(process: psutil.Process) -> set[signal.Signals]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return {number for number in signal.Signals if mask >> number - 1 & 1}


def test_they_share_what_the_worker_has_imported(worker: Worker) -> None:
    for child in processes(worker).values():
        # Pages of no file, of what Python and torch made: of those, new processes share none.
        lines = Path(f"/proc/{child.pid}/smaps").read_text().partition("[heap]\n")[2].splitlines()
        sizes = [line.split() for line in lines[: lines.index(next(x for x in lines if x.startswith("VmFlags")))]]
        kib = {size[0]: int(size[1]) for size in sizes}
        assert kib["Shared_Dirty:"] > 50_000, kib


def test_they_begin_as_new_processes_would(worker: Worker) -> None:
    listening = {each.laddr.port for each in psutil.Process(worker.process.pid).net_connections() if not each.raddr}
    assert len(listening) == 2
    for child in processes(worker).values():
        # Neither metrics nor requests reach anybody but the worker, and no signal is left to a handler of its.
        assert not {each.laddr.port for each in child.net_connections()} & listening
        assert not handled(child) & {signal.SIGHUP, signal.SIGQUIT}
    assert Path(f"/proc/{worker.process.pid}/comm").read_text().strip() == Path(sys.executable).name
    assert worker.ask([1, 2, 3]).tokens


def test_a_worker_ends_when_its_scheduler_is_killed(worker: Worker) -> None:
    children = processes(worker)
    children["scheduler"].kill()
    assert worker.process.wait(_END_SECONDS) != 0
    deadline = time.monotonic() + _END_SECONDS
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_device_and_a_process_of_several_threads_are_not_forked() -> None:
    assert not can_fork("cuda")
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert not can_fork("cpu")
    finally:
        stop.set()
        other.join()
