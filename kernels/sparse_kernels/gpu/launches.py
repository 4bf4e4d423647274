"""Launches of kernels that the host has little work with: what Triton finds out at every launch is found out once.

Triton binds and classifies the arguments, looks the compiled kernel up and encodes a descriptor for each tensor that is
copied by TMA, which takes the host longer than many a kernel runs. Here a launch like an earlier one takes the kernel
that was compiled for that, addresses in place of tensors, and descriptors that were encoded for the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

# Of variants of a kernel, and of encoded descriptors; more of them begin anew.
_MOST_READY, _MOST_ENCODED = 512, 8192
_WORD = 2**31


def current_stream(device: torch.device) -> int:
    """The stream on which the next launch on a device runs, as the driver knows it."""
    return int(triton.runtime.driver.active.get_current_stream(device.index or 0))


class Rows(NamedTuple):
    """A matrix whose parts kernels copy by TMA, the columns of a row side by side.

    Attributes:
        tensor: where it begins.
        rows: its rows.
        columns: of a row.
        stride: entries from row to row.
        block: rows and columns of a part.
        layout: of a part in shared memory, for Gluon; None for Triton.
    """

    tensor: torch.Tensor
    rows: int
    columns: int
    stride: int
    block: tuple[int, int]
    layout: Any = None

    def descriptor(self) -> Any:
        """The same as Triton takes it."""
        sizes = self.tensor, [self.rows, self.columns], [self.stride, 1], list(self.block)
        if self.layout is None:
            return TensorDescriptor(*sizes)
        from triton.experimental.gluon.nvidia import hopper

        return hopper.TensorDescriptor(*sizes, self.layout)


class _Ready(NamedTuple):
    """A compiled kernel and what launches it with addresses and encoded descriptors.

    Attributes:
        kernel: compiled.
        run: launches.
        encode: makes of a descriptor what ``run`` takes, by its number among the descriptors.
        trailing: what stands for the constants.
    """

    kernel: Any
    run: Callable[..., None]
    encode: Callable[[Any, int], list[Any]]
    trailing: tuple[None, ...]


class Launcher:
    """One kernel's launches.

    Arguments before the constants may be tensors, :class:`Rows` and numbers. Whole numbers that the kernel does not
    specialize on may be any; of the others each value is remembered, so they should be few in a process.

    Args:
        kernel: of Triton or Gluon, whose constants are its last arguments.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._ready: dict[tuple[Any, ...], _Ready] = {}
        self._encoded: dict[tuple[Any, ...], list[Any]] = {}
        params = () if triton.knobs.runtime.interpret else kernel.params
        self._open = [param.do_not_specialize for param in params if not param.is_constexpr]

    def __call__(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """Launches the kernel on the current stream; ``constants`` are its own and Triton's options."""
        self.in_turn(grid, args, (constants,))

    def in_turn(self, grid: tuple[int, ...], args: tuple[Any, ...], variants: Sequence[Mapping[str, Any]]) -> None:
        """Launches variants of the kernel, each by its constants and options, in turn with the same arguments."""
        hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
        if not self._open or any(hook is not None and hook.calls for hook in hooks):
            for constants in variants:
                self._bound(grid, args, constants)
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        kinds, plain, copied = self._sorted(args)
        for constants in variants:
            key = (device, *constants.values(), *kinds)
            ready = self._ready.get(key)
            if ready is None:
                made = _prepared(self._bound(grid, args, constants), len(self._kernel.arg_names) - len(args))
                if len(self._ready) >= _MOST_READY:
                    self._ready.clear()
                if made is not None:
                    self._ready[key] = made
                continue
            given = self._described(plain, copied, ready) if copied else plain
            compiled = ready.kernel
            ready.run(
                *grid, *(1,) * (3 - len(grid)), driver.get_current_stream(device), compiled.function,
                compiled.packed_metadata, None, None, None, *given, *ready.trailing,
            )  # fmt: skip

    def _sorted(self, args: tuple[Any, ...]) -> tuple[list[Any], list[Any], list[tuple[int, Rows]]]:
        """What decides the variant; addresses and numbers; and what takes a descriptor, by place."""
        kinds: list[Any] = []
        plain: list[Any] = []
        copied: list[tuple[int, Rows]] = []
        for arg, loose in zip(args, self._open, strict=True):
            kind = type(arg)
            if kind is int:
                plain.append(arg)
                # Of those that are not specialized on, the width is.
                if not loose or not -_WORD <= arg < _WORD:
                    kinds.append(arg)
            elif kind is float:
                plain.append(arg)
            elif kind is Rows:
                copied.append((len(plain), arg))
                plain.append(None)
                kinds.append(arg.tensor.dtype)
            else:
                address = arg.data_ptr()
                plain.append(address)
                kinds.append(arg.dtype)
                if address & 15:
                    kinds.append(-len(plain))
        return kinds, plain, copied

    def _described(self, plain: list[Any], copied: list[tuple[int, Rows]], ready: _Ready) -> list[Any]:
        """Addresses and numbers with the descriptors among them."""
        given: list[Any] = []
        done = 0
        for number, (place, rows) in enumerate(copied):
            given += plain[done:place]
            given += self._description(rows, ready, number)
            done = place + 1
        return given + plain[done:]

    def _bound(self, grid: tuple[int, ...], args: tuple[Any, ...], constants: Mapping[str, Any]) -> Any:
        """A launch by Triton itself, and the compiled kernel."""
        given = (arg.descriptor() if type(arg) is Rows else arg for arg in args)
        return self._kernel[grid](*given, **constants)

    def _description(self, rows: Rows, ready: _Ready, number: int) -> list[Any]:
        tensor, *sizes, _ = rows
        key = (tensor.data_ptr(), tensor.dtype, *sizes)
        found = self._encoded.get(key)
        if found is None:
            if len(self._encoded) >= _MOST_ENCODED:
                self._encoded.clear()
            found = self._encoded[key] = ready.encode(rows.descriptor(), number)
        return found


def _prepared(compiled: Any, constants: int) -> _Ready | None:
    """What launches a kernel with addresses and encoded descriptors; None where it takes none."""
    driver = triton.runtime.driver.active
    if compiled is None or driver.get_current_target().backend != "cuda":
        return None
    from triton.backends.nvidia import driver as nvidia

    described = getattr(compiled.metadata, "tensordesc_meta", None) or []
    trailing = (None,) * constants

    def encode(descriptor: Any, number: int) -> list[Any]:
        made: list[Any] = nvidia.make_tensordesc_arg(descriptor, described[number], *spare)
        return made

    if not described:
        return _Ready(compiled, compiled.run, encode, trailing)
    # A third argument, of which it makes no use, since Triton 3.7.
    spare = (None,) * (nvidia.make_tensordesc_arg.__code__.co_argcount - 2)
    kinds: list[Any] = []
    for kind in compiled.src.signature.values():
        # Of two dimensions each: the encoded descriptor, sizes and strides.
        encoded = isinstance(kind, str) and kind.startswith("tensordesc")
        kinds += ["nvTmaDesc", "i32", "i32", "i64", "i64"] if encoded else [kind]
    source = SimpleNamespace(signature=dict(enumerate(kinds)), fn=compiled.src.fn)
    run = nvidia.CudaLauncher(source, compiled.metadata._replace(tensordesc_meta=None))
    return _Ready(compiled, run, encode, trailing)
