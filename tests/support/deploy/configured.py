"""What a program makes of arguments that were written for another machine, over a model that is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sparsity_router import __main__ as router
from sparsity_worker import __main__ as worker
from support.tiny import tiny_model

_PROGRAMS = {"sparsity_router": router.read_config, "sparsity_worker": worker.read_config}


def configured(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, models: str = ""
) -> Any:
    """The configuration of `python -m PROGRAM ARGUMENTS`, with a tiny model in the folder for `--model`.

    Where ``models`` are given, the file of `--models`, for each of those in a folder that is called as it is there.
    """
    tiny = tiny_model(folder / "model")
    if not models:
        return _PROGRAMS[program]([*arguments, "--model", str(tiny)], environment)
    told = yaml.safe_load(models)
    for entry in told["models"]:
        place = folder / "models" / Path(entry["folder"]).name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(tiny)
        entry["folder"] = str(place)
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump(told))
    return _PROGRAMS[program]([*arguments, "--models", str(file)], environment)
