"""Installs sparsity-client alone into an empty environment, and prints what that brings."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from environment import ROOT, site_packages


class Installed(NamedTuple):
    """An environment with nothing but the client: its interpreter, its packages with their versions, and its size."""

    python: Path
    packages: tuple[str, ...]
    megabytes: float


def install(folder: Path) -> Installed:
    """Makes an environment in ``folder`` and installs the client of this clone, as its callers would."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check", str(ROOT / "client")], check=True)
    site = site_packages(folder)
    found = sorted(f"{one.name} {one.version}" for one in metadata.distributions(path=[str(site)]))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    return Installed(python, tuple(found), size / 1e6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = install(Path(folder) / "alone")
    print(*found.packages, f"{len(found.packages)} packages, {found.megabytes:.0f} MB", sep="\n")
