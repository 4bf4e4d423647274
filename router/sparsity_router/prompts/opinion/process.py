"""The process that the encoder lives in: its arithmetic would hold up the event loop.

This module is imported by both sides, so it loads nothing heavy.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsity_policies.risk.opinion import Opinions

from sparsity_router.processes.lifeline import end_with_parent

if TYPE_CHECKING:
    from sparsity_router.prompts.opinion.reader import Reader

_reader: Reader | None = None


def start(path: Path) -> None:
    """Makes this process a reader; it ends with the router, however that ends."""
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    from sparsity_router.prompts.opinion.reader import Reader

    _reader = Reader(path)


def read(texts: Sequence[str], until: float) -> Opinions | None:
    """As :meth:`.reader.Reader.read`, by this process's reader."""
    assert _reader is not None, "the process was not started"
    return _reader.read(texts, until)
