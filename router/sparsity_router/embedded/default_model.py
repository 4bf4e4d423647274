"""Makes the model folder of the embedded service, without loading what the worker needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError

from sparsity_router.embedded.folders import model_folder
from sparsity_router.embedded.restarts import PROGRESS_SECONDS


def default_model(say: Callable[[str], None]) -> Path:
    """The folder of the default model.

    Raises:
        ConfigurationError: when it cannot be made.
    """
    folder = model_folder()
    if not (folder / "config.json").is_file():
        say(f"making the default model in {folder}")
        _make("sparsity_worker.default_model", folder, say)
    return folder


def echo_model(state: Path, say: Callable[[str], None]) -> Path:
    """The folder that echo workers and their router share: a tokenizer of bytes, and no weights.

    Raises:
        ConfigurationError: when it cannot be made.
    """
    folder = state / "echo"
    _make("sparsity_worker.echo.model", folder, say)
    return folder


def _make(module: str, folder: Path, say: Callable[[str], None]) -> None:
    """Runs ``module``, which says its steps; while one of them takes long, says that it is still at it."""
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", module, str(folder)], stdout=sys.stderr) as process:
        while True:
            try:
                failed = process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                say(f"{time.monotonic() - started:.0f} s: still making {folder.name}")
    if failed:
        raise ConfigurationError(f"--model: {folder.name} could not be made (see above); give a model folder")
