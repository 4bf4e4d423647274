"""Small things to the device and back, without the host waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

# Of 4 bytes each: kernels load 16 bytes at once where they may.
_ALIGNED: Final = 4
# torch leaves it without types.
_Event: Any = torch.cuda.Event
_Held = TypeVar("_Held", bound=tuple[Any, ...])


def upload(device: torch.device, *columns: Sequence[int] | NDArray[Any] | torch.Tensor) -> list[torch.Tensor]:
    """Whole numbers, int32, by one copy that the host does not wait for.

    Args:
        device: where to.
        columns: each of any length.

    Returns:
        Each column, which begins at 16 bytes.
    """
    parts = [np.asarray(column, dtype=np.int32).ravel() for column in columns]
    starts = [0, *accumulate(-(-part.size // _ALIGNED) * _ALIGNED for part in parts)]
    # Fresh from torch's cache of pinned memory, which keeps it until the copy is done.
    host = torch.empty(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    for start, part in zip(starts, parts, strict=False):
        host[start : start + part.size] = torch.from_numpy(part)
    there = host.to(device, non_blocking=True)
    return [there[start : start + part.size] for start, part in zip(starts, parts, strict=False)]


def uploaded(device: torch.device, held: _Held) -> _Held:
    """A named tuple with its tensors of whole numbers on ``device``, by one copy that the host does not wait for."""
    # A tuple's type says nothing of what `NamedTuple` adds.
    named: Any = held
    parts = {name: part for name, part in named._asdict().items() if isinstance(part, torch.Tensor)}
    there = upload(device, *parts.values())
    moved: _Held = named._replace(**{name: x.view(parts[name].shape) for name, x in zip(parts, there, strict=True)})
    return moved


class Download:
    """A tensor on its way to the host; what is read later is what it held when this was made.

    Args:
        found: on any device.
    """

    def __init__(self, found: torch.Tensor) -> None:
        self._done: Any = None
        if found.device.type == "cuda":
            self._host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._host.copy_(found, non_blocking=True)
            self._done = _Event()
            self._done.record()
        else:
            self._host = found.clone()

    def ready(self) -> bool:
        """Whether it has arrived."""
        return self._done is None or bool(self._done.query())

    def read(self) -> NDArray[Any]:
        """Its values; waits only for what was asked of the device before it."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.numpy()
