"""Where a worker keeps what outlives it."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """Of this user's workers, unless an option names another."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "sparsity-router" / "worker"
