"""Early hook of the CPU engine, run by SGLang while it looks for hardware platforms."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def prepare() -> None:
    """Lets `sgl_kernel` import on a machine without a GPU, and without FlashInfer, which takes seconds to import.

    Its loader, finding no GPU library, imports a module named `common_ops`; the CPU engine calls nothing in it.
    FlashInfer has kernels for GPUs only: whoever imports it gets an ImportError, as if it were not installed.
    Returning None tells SGLang that this is no platform of its own.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        absent = ModuleType("common_ops")
        absent.__file__ = __file__  # the loader logs it
        sys.modules.setdefault("common_ops", absent)
        # Python's own sign of what must not be imported; its stubs do not know it.
        modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
        modules.setdefault("flashinfer", None)
