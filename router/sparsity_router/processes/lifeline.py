"""Child processes that must not outlive the one that started them, however that ended."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded early: between fork and exec nothing should have to be.
_libc = ctypes.CDLL(None)


def end_with_parent(number: signal.Signals) -> None:
    """Has the kernel send ``number`` to this process when its parent ends (prctl(2), Linux only)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, number)
