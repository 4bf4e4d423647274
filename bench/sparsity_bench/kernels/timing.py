"""What a device takes: launches after a pause, launches back to back, and layers in a CUDA graph.

A card that computes for a second draws all the power it may and lowers its clock, so that the same kernel is up to a
fifth slower than after a pause; both are told. Caches are cold: they are filled by reading something else, since a
flush that writes would leave its write-back to the measured kernel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch

# Several times what the L2 cache of a Hopper GPU holds.
_FLUSHED_BYTES = 512 * 2**20
_PAUSE_SECONDS, _COOL_RUNS = 0.2, 7
_SUSTAINED_MS = 1000.0
# Shorter runs back to back would time the host that launches them.
_SUSTAINED_FROM_MS = 0.3
_REPLAYS = 15
# Cycles that the device waits, about a millisecond, so that what follows is launched before it begins.
_HELD_CYCLES = 2_000_000
# torch leaves these two without types.
_Event: Any = torch.cuda.Event
_Stream: Any = torch.cuda.Stream


class Times(NamedTuple):
    """Milliseconds of one call.

    Attributes:
        cool: each launch after 0.2 s of rest, the median of seven.
        sustained: back to back for a second, of which the second half; None where the host would be timed.
    """

    cool: float
    sustained: float | None

    @property
    def modes(self) -> dict[str, float]:
        """What there is, by name."""
        return {"cool": self.cool} | ({} if self.sustained is None else {"sustained": self.sustained})

    @property
    def last(self) -> str:
        """Which of them is judged by a goal."""
        return "cool" if self.sustained is None else "sustained"


class Clock:
    """Times calls on one device; on the CPU, where nothing is worth a measurement, by a single run.

    Args:
        device: `cuda` or `cpu`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._other = torch.rand(_FLUSHED_BYTES // 4, device=device) if device != "cpu" else torch.empty(0)

    def times(self, run: Callable[[], Any], *, sustained: bool = True) -> Times:
        """Of one call, after two warm ones."""
        if self.device == "cpu":
            took = _by_hand(run)
            return Times(took, took if sustained else None)
        for _ in range(2):
            run()
        found = []
        for _ in range(_COOL_RUNS):
            torch.cuda.synchronize()
            time.sleep(_PAUSE_SECONDS)
            found.append(self._once(run))
        cool = statistics.median(found)
        return Times(cool, _sustained(run, cool) if sustained and cool >= _SUSTAINED_FROM_MS else None)

    def layers(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Milliseconds of each of ``calls``, which a CUDA graph holds one after another; median of fifteen replays.

        Calls of a model's layers find in the cache what the last ones left, so they must not share keys and values.
        """
        if self.device == "cpu":
            return sum(map(_by_hand, calls)) / len(calls)
        replay = _graph(calls)
        replay()
        return statistics.median(self._once(replay) for _ in range(_REPLAYS)) / len(calls)

    @cached_property
    def copy_tbps(self) -> float:
        """Bandwidth of a device copy, read plus write, TB/s: the better of torch's and of a kernel by elements.

        A graph holds torch's as the driver's own, which need not be the fastest.
        """
        source = torch.rand(2**28 if self.device != "cpu" else 2**18, device=self.device)
        target = torch.empty_like(source)
        copies = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
        fastest = min(self.layers([copy]) for copy in copies)
        return 2 * source.nbytes / (fastest * 1e-3) / 1e12

    def _once(self, run: Callable[[], Any]) -> float:
        self._other.sum()
        torch.cuda._sleep(_HELD_CYCLES)  # type: ignore[no-untyped-call]
        begin, end = _Event(enable_timing=True), _Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


def _by_hand(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _sustained(run: Callable[[], Any], cool: float) -> float:
    half = max(2, round(_SUSTAINED_MS / cool / 2))
    middle, end = _Event(enable_timing=True), _Event(enable_timing=True)
    for _ in range(half):
        run()
    middle.record()
    for _ in range(half):
        run()
    end.record()
    end.synchronize()
    return float(middle.elapsed_time(end)) / half


def _graph(calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    side: Any = _Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    replay: Callable[[], None] = graph.replay
    return replay
