"""Where kernels are tested: on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), or on a real GPU.

A test draws on the CPU, launches through :func:`launch`, and compares on the CPU with a definition in float64.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies the bits of bfloat16 numbers, not the numbers.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.bfloat16, torch.float16, torch.float32]
# RMS of the error over that of the float64 result, from rounded weights and outputs; on a GPU float32 is multiplied as
# TF32, which has the digits of float16 and cuts off the others.
TOLERANCES = {torch.float32: 1e-5 if INTERPRETED else 4e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Of tests that are about what is attended, and not about digits.
EXACT = TOLERANCES[torch.float32]

Launch = Callable[..., Any]


def on(device: str, given: Any) -> Any:
    """The same on a device: a tensor, an object of ours that holds some, or a tuple, list or dictionary of such."""
    if isinstance(given, torch.Tensor):
        return given.to(device)
    if isinstance(given, dict):
        return {name: on(device, each) for name, each in given.items()}
    if isinstance(given, list | tuple):
        moved = [on(device, each) for each in given]
        return type(given)(*moved) if hasattr(given, "_fields") else type(given)(moved)
    if _holds(given):
        moved = copy.copy(given)
        vars(moved).update(on(device, vars(given)))
        return moved
    return given


def _holds(given: Any) -> bool:
    """Whether it is of a class of ours with tensors in its attributes, such as page summaries."""
    return type(given).__module__.startswith("sparse_kernels.") and hasattr(given, "__dict__")


def tensors(given: Any) -> Iterator[torch.Tensor]:
    """The tensors of what :func:`on` moves, always in the same order."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, dict) or _holds(given):
        yield from tensors(list((given if isinstance(given, dict) else vars(given)).values()))
    elif isinstance(given, list | tuple):
        for each in given:
            yield from tensors(each)


def launch(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Calls a function with its arguments moved to the device, and moves back what it returns."""
    return on("cpu", function(*on(DEVICE, given), **on(DEVICE, named)))


def captured(function: Callable[..., Any], *given: Any) -> Launch:
    """Captures a call in a CUDA graph; what it gives takes arguments of the same shapes, and replays over them.

    Where there are no graphs, it calls.
    """
    held = copy.deepcopy(on(DEVICE, given))
    out, replay = (None, None) if INTERPRETED else _graph(function, held)

    def again(*fresh: Any) -> Any:
        for mine, other in zip(tensors(held), tensors(fresh), strict=True):
            mine.copy_(other)
        if replay is None:
            return function(*held)
        replay()
        return copy.deepcopy(on("cpu", out))

    return again


def _graph(function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, Callable[[], None]]:
    """What a captured call returns, which each replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*given)
    return out, graph.replay
