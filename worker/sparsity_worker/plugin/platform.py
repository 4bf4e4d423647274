"""Early hook of the CPU engine, run by SGLang while it looks for hardware platforms."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def prepare() -> None:
    """Lets `sgl_kernel` import on a machine without a GPU.

    Its loader, finding no GPU library, imports a module named `common_ops`; the CPU engine calls nothing in it.
    Returning None tells SGLang that this is no platform of its own.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        absent = ModuleType("common_ops")
        absent.__file__ = __file__  # the loader logs it
        sys.modules.setdefault("common_ops", absent)
