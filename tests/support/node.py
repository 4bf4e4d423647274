"""Packages of npm, installed once into the cache that clones share, and programs of TypeScript that use them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from sparsity_router.embedded.folders import cache_folder

_INSTALL_SECONDS = 240
_COMPILER = {
    "target": "es2022",
    "module": "nodenext",
    "strict": True,
    "skipLibCheck": True,
    "types": ["node"],
    "rootDir": ".",
    "outDir": "built",
}


def packages(**wanted: str) -> Path:
    """The `node_modules` of a folder that has exactly these packages, and what they need."""
    manifest = json.dumps({"private": True, "type": "module", "dependencies": wanted})
    folder = cache_folder() / "frameworks" / f"npm-{hashlib.sha256(manifest.encode()).hexdigest()[:16]}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(manifest)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=folder, check=True, timeout=_INSTALL_SECONDS)
        (folder / "complete").touch()
    return folder / "node_modules"


async def run(*command: str, folder: Path, modules: Path) -> str:
    """What a program prints that finds the packages' own on its path; it must end well."""
    path = f"{modules / '.bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={"PATH": path, "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, f"{command[0]} ended by {process.returncode}: {(out + error).decode()}"
    return out.decode()


async def built(program: str, folder: Path, modules: Path) -> Path:
    """A program of TypeScript beside whose source lies what it imports, checked strictly and compiled."""
    (folder / "node_modules").symlink_to(modules)
    (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": _COMPILER, "include": ["*.ts", "generated"]}))
    (folder / "ask.ts").write_text(program)
    await run("tsc", folder=folder, modules=modules)
    return folder / "built" / "ask.js"
