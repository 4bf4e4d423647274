"""The kernels' tests run in Triton's interpreter, or on a real GPU; `support.kernels.devices` says how."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.kernels.devices import DTYPES, INTERPRETED, TOLERANCES

if INTERPRETED:
    from support.kernels.interpreter import spare_the_interpreter

    spare_the_interpreter()
# A machine that is lent for its GPU may have no gRPC, without which the worker's classes do not load.
collect_ignore = [
    path.name
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if find_spec("grpc") is None and "sparsity_worker" in path.read_text(encoding="utf-8")
]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without the interpreter a GPU is needed: nothing is skipped in silence."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.exit("torch finds no CUDA device; TRITON_INTERPRET=1 tests the kernels without one", returncode=2)


def pytest_report_header() -> list[str]:
    told = [f"kernels on: {'the CPU, interpreted' if INTERPRETED else torch.cuda.get_device_name()}"]
    return told + [f"left out, for want of gRPC: {', '.join(collect_ignore)}"] * bool(collect_ignore)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What `poisoned` asks of torch is said of operations beside the kernels, too.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:.*deterministic"))


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of queries, keys and values that is tested here."""
    return request.param


@pytest.fixture
def tolerance(dtype: torch.dtype) -> float:
    """What `rms_ratio` may be against float64 with this dtype."""
    return TOLERANCES[dtype]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote holds NaN, and integers that are no index."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
