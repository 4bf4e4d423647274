"""Where the embedded service keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

MODEL = "SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """What can be made again: the model."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsity-router"


def state_folder() -> Path:
    """What should stay: policies, logs, the note of what runs."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sparsity-router"


def model_folder() -> Path:
    """The default model."""
    return cache_folder() / "models" / MODEL
