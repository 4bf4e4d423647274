"""Where the kernels are tested: on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), or on a real GPU.

A test draws on the CPU, launches through `launch`, and compares on the CPU with a definition in float64.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.paging import on, tensors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies the bits of bfloat16 numbers, not the numbers.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.bfloat16, torch.float16, torch.float32]
# RMS of the error over that of the float64 result, from rounded weights and outputs; on a GPU float32 is multiplied as
# TF32, which has the digits of float16 and cuts off the others.
TOLERANCES = {torch.float32: 1e-5 if INTERPRETED else 4e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Launch = Callable[..., Any]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without the interpreter a GPU is needed: nothing is skipped in silence."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.exit("torch finds no CUDA device; TRITON_INTERPRET=1 tests the kernels without one", returncode=2)


def pytest_report_header() -> str:
    return f"kernels on: {'the CPU, interpreted' if INTERPRETED else torch.cuda.get_device_name()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What `poisoned` asks of torch is said of operations beside the kernels, too.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:.*deterministic"))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of queries, keys and values that is tested here."""
    return request.param


@pytest.fixture
def tolerance(dtype: torch.dtype) -> float:
    """What `rms_ratio` may be against float64 with this dtype."""
    return TOLERANCES[dtype]


@pytest.fixture
def exact() -> float:
    """The tolerance of float32, for tests that are about what is attended and not about digits."""
    return TOLERANCES[torch.float32]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote holds NaN, and integers that are no index."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launch(device: str) -> Launch:
    """Calls a function with its arguments moved to the device, and moves back what it returns."""

    def call(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return on("cpu", function(*on(device, given), **on(device, named)))

    return call


@pytest.fixture
def captured(device: str) -> Callable[..., Launch]:
    """Captures a call in a CUDA graph; what it gives takes arguments of the same shapes, and replays over them.

    Where there are no graphs, it calls.
    """

    def capture(function: Callable[..., Any], *given: Any) -> Launch:
        held = copy.deepcopy(on(device, given))
        out, replay = _graph(function, held) if device == "cuda" else (None, None)

        def again(*fresh: Any) -> Any:
            for mine, other in zip(tensors(held), tensors(fresh), strict=True):
                mine.copy_(other)
            if replay is None:
                return function(*held)
            replay()
            return copy.deepcopy(on("cpu", out))

        return again

    return capture


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
