"""The kernels' own tests run in Triton's interpreter, or on a GPU when their folder is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_KERNELS = Path(__file__).parent / "gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The interpreter is a matter of the whole process; without it only those who name the folder mean a GPU."""
    if collection_path != _KERNELS or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    named = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return None if any(path == _KERNELS or _KERNELS in path.parents for path in named) else True
