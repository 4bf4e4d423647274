"""Clocks of the router benchmarks: latency of calls, and CPU time of the process that answers them.

CPU time is the process's own, from the operating system, by call: on a shared machine it tells more than latency.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil

Call = Callable[[], Awaitable[None]]
Clock = Callable[[], float]


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
    for _ in range(max(count // 10, 5)):
        await call()
    times, before = [], clock()
    for _ in range(count):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e6)
    return Timing(statistics.median(times), (clock() - before) / count * 1e6)


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
