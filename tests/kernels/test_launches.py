"""A launch like an earlier one takes the kernel that was compiled for that, and Triton is asked for every other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from sparse_kernels.gpu.launches import Launcher

GRID = (2, 3)
ALONE = """
import torch
from sparse_kernels.gpu.launches import Rows

print(Rows(torch.zeros(64, 32), 64, 32, 32, (16, 32)).descriptor().block_shape)
"""


class Kernel:
    """A kernel of two tensors, a number that it specializes on, one that it does not, a float and a constant."""

    def __init__(self) -> None:
        self.bound: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []
        self.arg_names = ["x", "y", "stride", "rows", "scale", "BLOCK"]
        loose = {"rows"}
        self.params = [
            SimpleNamespace(do_not_specialize=name in loose, is_constexpr=name.isupper()) for name in self.arg_names
        ]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*args: Any, **constants: Any) -> Any:
            self.bound.append((grid, *args, constants))
            return SimpleNamespace(
                metadata=SimpleNamespace(), function=len(self.bound), packed_metadata="packed",
                run=lambda *given: self.direct.append(given),
            )  # fmt: skip

        return launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """One on an NVIDIA GPU that is not there."""
    active = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 70 + device,
        get_current_target=lambda: SimpleNamespace(backend="cuda"),
    )  # fmt: skip
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    return Kernel()


X, Y = torch.zeros(64), torch.zeros(64, dtype=torch.int32)


def test_the_second_launch_is_direct_and_takes_addresses(kernel: Kernel) -> None:
    launch = Launcher(kernel)
    launch(GRID, X, Y, 5, 100, 0.5, BLOCK=64, num_warps=4)
    assert kernel.bound == [(GRID, X, Y, 5, 100, 0.5, {"BLOCK": 64, "num_warps": 4})]
    assert not kernel.direct
    other = torch.zeros(64)
    launch((7,), other, Y, 5, 101, 0.25, BLOCK=64, num_warps=4)
    assert len(kernel.bound) == 1
    addresses = (other.data_ptr(), Y.data_ptr())
    assert kernel.direct == [(7, 1, 1, 70, 1, "packed", None, None, None, *addresses, 5, 101, 0.25, None)]


@pytest.mark.parametrize(
    "change",
    [
        {"x": X.half()}, {"y": Y[1:]}, {"stride": 6}, {"rows": 2**31}, {"constants": {"BLOCK": 32, "num_warps": 4}},
        {"constants": {"BLOCK": 64, "num_warps": 8}},
    ],
)  # fmt: skip
def test_what_triton_would_compile_anew_is_asked_of_triton_once(kernel: Kernel, change: dict[str, Any]) -> None:
    launch = Launcher(kernel)
    given: dict[str, Any] = {"x": X, "y": Y, "stride": 5, "rows": 100, "scale": 0.5}
    options = {"BLOCK": 64, "num_warps": 4}
    launch(GRID, *given.values(), **options)
    changed = {**given, **{name: value for name, value in change.items() if name != "constants"}}
    for _ in range(2):
        launch(GRID, *changed.values(), **change.get("constants", options))
    assert [len(kernel.bound), len(kernel.direct)] == [2, 1]
    # Of the two variants each has its own.
    launch(GRID, *given.values(), **options)
    assert [call[4] for call in kernel.direct] == [2, 1]


def test_variants_run_in_turn(kernel: Kernel) -> None:
    launch = Launcher(kernel)
    for _ in range(2):
        launch.in_turn(GRID, (X, Y, 5, 100, 0.5), [{"BLOCK": 16}, {"BLOCK": 32}])
    assert [call[-1]["BLOCK"] for call in kernel.bound] == [16, 32]
    assert [call[4] for call in kernel.direct] == [1, 2]


def test_hooks_see_every_launch(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launcher(kernel)
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", SimpleNamespace(calls=[print]))
    for _ in range(3):
        launch(GRID, X, Y, 5, 100, 0.5, BLOCK=64)
    assert [len(kernel.bound), len(kernel.direct)] == [3, 0]


def test_other_devices_keep_to_triton(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    target = SimpleNamespace(backend="hip")
    monkeypatch.setattr(triton.runtime.driver.active, "get_current_target", lambda: target)
    launch = Launcher(kernel)
    for _ in range(3):
        launch(GRID, X, Y, 5, 100, 0.5, BLOCK=64)
    assert [len(kernel.bound), len(kernel.direct)] == [3, 0]


def test_an_argument_too_few_is_refused(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="zip"):
        Launcher(kernel)(GRID, X, Y, 5, BLOCK=64)


def test_a_process_that_imports_no_more_describes_rows() -> None:
    """As one that compiles ahead of the worker, which has none of what SGLang imports."""
    command = [sys.executable, "-c", ALONE]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[16, 32]\n"
