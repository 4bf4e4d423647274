"""Environments of others' packages, installed once into the cache that clones share, and scripts that run in them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparsity_router.embedded.folders import cache_folder

_INSTALL_SECONDS = 240


def interpreter(*requirements: str) -> Path:
    """The Python of an environment that has exactly these packages, and what they need."""
    folder = cache_folder() / "frameworks" / "+".join(requirements).replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *requirements]
        subprocess.run(install, check=True, timeout=_INSTALL_SECONDS)
        (folder / "complete").touch()
    return python


async def said_by(python: Path, script: str, *arguments: str) -> Any:
    """What a script prints, as JSON."""
    process = await asyncio.create_subprocess_exec(
        str(python), "-I", "-W", "ignore", "-c", script, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, f"ended by {process.returncode}: {error.decode()}"
    return json.loads(out.splitlines()[-1])
