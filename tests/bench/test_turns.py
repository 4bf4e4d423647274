"""Processes that compute by turns."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from sparsity_bench.tiers.turns import Turns

# A process with a child that says when it is there, as a worker has its engine.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True)\\nwhile True: pass"])
child.wait()
"""


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Two of them."""
    parents = [subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) for _ in range(2)]
    for parent in parents:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
    sides = [family(parent.pid) for parent in parents]
    yield [parent.pid for parent in parents]
    for process in (each for side in sides for each in side):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for parent in parents:
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def standing(pid: int) -> list[bool]:
    return [process.status() == psutil.STATUS_STOPPED for process in family(pid)]


def test_one_stands_still_with_its_children_while_the_other_goes_on(pids: list[int]) -> None:
    turns, stood = Turns(pids), set[int]()
    with turns.taken():
        # As long as it takes until each has had its turn.
        while len(stood) < 2:
            stood |= {pid for pid in pids if all(standing(pid))}
            time.sleep(0.01)
    assert not any(stands for pid in pids for stands in standing(pid))


def test_the_time_of_each_is_that_of_its_turns(pids: list[int]) -> None:
    began = time.perf_counter()
    turns = Turns(pids)
    with turns.taken():
        while min(turns.seconds(0), turns.seconds(1)) <= 0.0:
            time.sleep(0.01)
        both = turns.seconds(0) + turns.seconds(1)
    assert 0.0 < both <= time.perf_counter() - began


def test_one_that_ended_holds_nobody_up(pids: list[int]) -> None:
    turns = Turns(pids)
    for process in family(pids[0]):
        process.kill()
    with turns.taken():
        while turns.seconds(1) <= 0.0:
            time.sleep(0.01)
    assert not any(standing(pids[1]))


def test_they_go_on_together_when_what_they_were_asked_fails(pids: list[int]) -> None:
    with pytest.raises(RuntimeError, match="refused"), Turns(pids).taken():
        raise RuntimeError("refused")
    assert not any(stands for pid in pids for stands in standing(pid))
