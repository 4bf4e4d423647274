"""YAML files that options name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from sparsity_rpc.errors import ConfigurationError


def read_options_file(option: str, path: Path) -> Any:
    """The document in ``path``.

    Raises:
        ConfigurationError: naming the option and the file, when it cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # odd values end in whatever their constructors raise, deep ones in a RecursionError
        raise ConfigurationError(f"{option}: {path}: cannot be read: {error or type(error).__name__}") from error
