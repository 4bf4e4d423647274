"""Makes the default model where it is not there yet, without loading what the worker needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sparsity.errors import ConfigurationError

from sparsity_router.embedded.folders import model_folder


def default_model(say: Callable[[str], None]) -> Path:
    """The folder of the default model.

    Raises:
        ConfigurationError: when it cannot be made.
    """
    folder = model_folder()
    if not (folder / "config.json").is_file():
        say(f"fetching the default model into {folder}")
        command = [sys.executable, "-m", "sparsity_worker.default_model", str(folder)]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise ConfigurationError("--model: the default model could not be made (see above); give a model folder")
    return folder
