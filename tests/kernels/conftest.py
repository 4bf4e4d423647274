"""The Triton kernels are tested in Triton's interpreter, which the whole process must be started for."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["gpu"]
