"""Which modules of SGLang define the model: its registry would import all two hundred and fifty to find one class."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

DISABLED: Final = "SGLANG_DISABLED_MODEL_ARCHS"
"""SGLang's variable: modules of models that it leaves out, with commas between."""
# What a module gives the registry stands at its end.
_ENTRY: Final = "\nEntryClass"


def disable_other_models(model: Path, modules: Path) -> None:
    """Has SGLang leave out the modules that do not define the model's class, unless the environment says which.

    Args:
        model: folder of the model.
        modules: SGLang's folder of them. Where none names the class, as of what it runs by transformers, all stay.

    Raises:
        OSError: when the files cannot be read.
    """
    wanted = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures")
    if not wanted:
        return
    # SGLang has another class for a quantized Mixtral.
    named = re.compile(rf"\b(Quant)?({'|'.join(map(re.escape, wanted))})\b")
    entries = {path.stem: path.read_text(encoding="utf-8").partition(_ENTRY)[2] for path in modules.glob("*.py")}
    others = sorted(name for name, entry in entries.items() if not named.search(entry))
    if len(others) < len(entries):
        os.environ.setdefault(DISABLED, ",".join(others))
