"""What a program makes of arguments that were written for another machine, over a model that is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity_router import __main__ as router
from sparsity_worker import __main__ as worker
from support.tiny import tiny_model

_PROGRAMS = {"sparsity_router": router.read_config, "sparsity_worker": worker.read_config}


def configured(program: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Any:
    """The configuration of `python -m PROGRAM ARGUMENTS`, with a tiny model in the folder for `--model`."""
    return _PROGRAMS[program]([*arguments, "--model", str(tiny_model(folder / "model"))], environment)
