"""What ptxas makes of PTX for Hopper, kept in Triton's cache beside the PTX: the same text gives the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.runtime.cache import get_cache_manager

_FILE = "assembled.json"


class Assembled(NamedTuple):
    """What ptxas tells of a kernel, and the listing of its instructions."""

    told: str
    listing: str


def assembled(ptx: str) -> Assembled:
    """Assembles PTX, unless this text was assembled by these very tools before."""
    tools = triton.knobs.nvidia.ptxas, triton.knobs.nvidia.cuobjdump
    by = [triton.__version__, *(word for tool in tools for word in (tool.path, tool.version))]
    key = hashlib.sha256("\0".join([ptx, *by]).encode()).hexdigest()
    cache = get_cache_manager(key)
    kept = cache.get_file(_FILE)
    if kept is None:
        made = _assemble(ptx, *(tool.path for tool in tools))
        cache.put(json.dumps(made), _FILE, binary=False)
        return made
    return Assembled(*json.loads(Path(kept).read_text(encoding="utf-8")))


def _assemble(ptx: str, ptxas: str, cuobjdump: str) -> Assembled:
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        command = [ptxas, "-v", "-arch=sm_90a", str(text), "-o", str(cubin)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        dump = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    return Assembled(told, dump.stdout)
