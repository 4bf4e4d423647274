"""The GPU driver's own library: names and energy without starting CUDA in this process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAME_BYTES = 96


def device_name() -> str:
    """What the driver calls the first device that this process may use; empty where there is no driver."""
    with _first_device() as (library, device):
        text = ctypes.create_string_buffer(_NAME_BYTES)
        found = device is not None and library.nvmlDeviceGetName(device, text, _NAME_BYTES) == 0
        return text.value.decode() if found else ""


def energy_joules() -> float | None:
    """What that device has used since the driver was loaded; None where the driver does not tell."""
    with _first_device() as (library, device):
        millijoules = ctypes.c_ulonglong()
        if device is None or library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            return None
        return millijoules.value / 1e3


@contextmanager
def _first_device() -> Iterator[tuple[Any, Any]]:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        yield None, None
        return
    if library.nvmlInit_v2():
        yield None, None
        return
    device = ctypes.c_void_p()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    try:
        index = int(visible) if visible.isdecimal() else 0
        yield library, None if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) else device
    finally:
        library.nvmlShutdown()
