"""Medians of what a device takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

# More than an H100's L2 cache holds: every run finds it cold.
_FLUSHED_BYTES = 256 * 2**20
_WARM, _RUNS = 3, 15
# torch leaves these two without types.
_Event: Any = torch.cuda.Event
_Stream: Any = torch.cuda.Stream


def median_ms(run: Callable[[], Any], device: str) -> float:
    """Milliseconds of ``run``, median over fifteen runs after three warm ones; on the CPU of one run."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    for _ in range(_WARM):
        run()
    found = []
    for _ in range(_RUNS):
        flushed.random_(0, 2)
        begin, end = _Event(enable_timing=True), _Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)))
    return statistics.median(found)


def replayed(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """``run`` as a CUDA graph; itself on the CPU."""
    if device == "cpu":
        return run
    side: Any = _Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_tbps(device: str) -> float:
    """Bandwidth of a device copy, read plus write, TB/s."""
    source = torch.randint(0, 255, (2**28 if device != "cpu" else 2**22,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda: target.copy_(source), device) * 1e-3) / 1e12
