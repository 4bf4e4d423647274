"""Writes what images install, version by version with SHA-256, for pip's `--require-hashes`: deploy/docker/*.lock.txt.

The versions are those of constraints.txt; the hashes are of the files that the images' Python takes on x86-64.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from environment import ROOT, Kind, requirements

IMAGES: Final = {
    "router": Kind(
        "", ("client", "serving", "worker", "router"), ("embedded", "kubernetes", "semantic", "stock"), "", 0
    ),
    "worker": Kind("", ("client", "serving", "worker"), ("sglang",), "", 0),
}
# Of the images: Debian 12 has glibc 2.36.
PYTHON, PLATFORM = "3.11.14", "x86_64-manylinux_2_36"


def lock_file(image: str) -> Path:
    """Where the lock of an image lies."""
    return ROOT / "deploy" / "docker" / f"{image}.lock.txt"


def locked(kind: Kind) -> str:
    """The lines of a lock: every package that ``kind`` brings."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, found = Path(folder) / "wanted.in", Path(folder) / "pylock.toml"
        wanted.write_text("\n".join(requirements(kind)))
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--format", "pylock.toml"]
        command += ["--python-version", PYTHON, "--python-platform", PLATFORM, "--output-file", str(found), str(wanted)]
        subprocess.run([*command, "--constraint", str(ROOT / "constraints.txt")], check=True)
        packages = tomllib.loads(found.read_text(encoding="utf-8"))["packages"]
    # A virtual environment has a pip of its own.
    return "".join(_line(package) for package in packages if package["name"] != "pip")


def _line(package: dict[str, Any]) -> str:
    files = package.get("wheels") or [package["sdist"]]
    hashes = sorted(file["hashes"]["sha256"] for file in files)
    pinned = f"{package['name']}=={package['version']}"
    return " \\\n".join([pinned, *(f"    --hash=sha256:{one}" for one in hashes)]) + "\n"


if __name__ == "__main__":
    for image, kind in IMAGES.items():
        lock_file(image).write_text(locked(kind), encoding="utf-8")
