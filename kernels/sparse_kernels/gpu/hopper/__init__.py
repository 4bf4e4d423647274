"""Kernels in Gluon for NVIDIA Hopper: TMA, warp groups and asynchronous tensor-core products."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import triton


@cache
def gluon_module(name: str) -> ModuleType | None:
    """A module of this package; None where this Triton has no Gluon, and in its interpreter, which does not know it."""
    if triton.knobs.runtime.interpret:
        return None
    try:
        return import_module(f"{__name__}.{name}")
    except ImportError:
        return None
