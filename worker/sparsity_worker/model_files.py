"""What tells copies of a model apart, without reading all of its weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

# What says how weights are computed with, and which file has which; SGLang reads weights of these kinds.
_WHOLE: Final = ("config.json", "hf_quant_config.json", "*.index.json")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
# Of weights that were trained on, every part changes; an end is enough.
_END_BYTES: Final = 65_536


def digest(folder: Path) -> str:
    """Of config and index, and of the name, the size and the end of each file of weights.

    Raises:
        OSError: when a file cannot be read.
    """
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if any(path.match(pattern) for pattern in _WHOLE):
            part = path.read_bytes()
        elif any(path.match(pattern) for pattern in _WEIGHTS):
            part = _size_and_end(path)
        else:
            continue
        found.update(f"{path.name} {len(part)}\n".encode() + part)
    return found.hexdigest()


def _size_and_end(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        return f"{size}\n".encode() + file.read()
