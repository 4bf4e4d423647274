"""Clocks of benchmarks of running processes: latency of calls, and CPU time of the process that answers them.

CPU time is the process's own, from the operating system, by call: on a shared machine it tells more than latency.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import psutil

Call = Callable[[], Awaitable[None]]
Clock = Callable[[], float]
# The operating system counts in hundredths of a second: a turn is to take several.
_TURNS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """One way to the worker.

    Attributes:
        median: latency of one call at a time, microseconds.
        cpu: of the process in between by call, microseconds.
    """

    median: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Path:
    """What a router costs beside a direct call.

    Attributes:
        added: latency at the median that a call takes longer, microseconds.
        cpu: by request, microseconds.
        chunk: CPU by further message of a stream, microseconds.
        large: CPU by request with a large prompt, microseconds.
    """

    added: float
    cpu: float
    chunk: float
    large: float

    @classmethod
    def of(cls, direct: Timing, short: Timing, stream: Timing, messages: int, large: Timing) -> Path:
        """From the timings of a direct call, a relayed one, a relayed stream, and one with a large prompt."""
        return cls(short.median - direct.median, short.cpu, (stream.cpu - short.cpu) / (messages - 1), large.cpu)


def cpu_clock(pid: int) -> Clock:
    """CPU seconds that a process and its children have used."""
    parent = psutil.Process(pid)
    processes = [parent, *parent.children(recursive=True)]

    def used() -> float:
        times = [process.cpu_times() for process in processes]
        return float(sum(one.user + one.system for one in times))

    return used


async def one_at_a_time(call: Call, count: int, clock: Clock) -> Timing:
    """Calls one after another, after a tenth as many that do not count."""
    return (await by_turns({"": (call, clock)}, count))[""]


async def by_turns(ways: Mapping[str, tuple[Call, Clock]], count: int) -> dict[str, Timing]:
    """Calls one after another, of each way by turns: a machine that slows down in between slows all of them.

    Args:
        ways: a call and the clock of its process, by name.
        count: calls of each, after a tenth as many that do not count.
    """
    for call, _ in ways.values():
        for _ in range(max(count // 10, 5)):
            await call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    used = dict.fromkeys(ways, 0.0)
    rounds = min(_TURNS, count) if len(ways) > 1 else 1
    for turn in range(rounds):
        for name, (call, clock) in ways.items():
            before = clock()
            for _ in range(turn * count // rounds, (turn + 1) * count // rounds):
                started = time.perf_counter()
                await call()
                times[name].append((time.perf_counter() - started) * 1e6)
            used[name] += clock() - before
    return {name: Timing(statistics.median(times[name]), used[name] / count * 1e6) for name in ways}


async def many_at_once(call: Call, count: int, at_once: int, clock: Clock) -> tuple[float, float]:
    """Calls a second, and CPU microseconds by call, with ``at_once`` in flight."""
    left = count

    async def run() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    before, started = clock(), time.perf_counter()
    await asyncio.gather(*(run() for _ in range(at_once)))
    return count / (time.perf_counter() - started), (clock() - before) / count * 1e6
