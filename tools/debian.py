"""Programs out of Debian's packages, unpacked into the cache folder: nothing is installed, and not by root.

apt checks them by the distribution's signatures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from environment import alone

_SECONDS = 300.0


def unpack(package: str, folder: Path, is_there: Callable[[], bool], *, needs: bool = True) -> None:
    """Downloads a package, and unpacks it in the place of what lies in a folder, unless what is wanted is there.

    Args:
        package: its name.
        folder: where its files end up, as below the root.
        is_there: whether they are usable; another process may have brought them meanwhile.
        needs: whether those of its dependencies go along that this machine lacks.

    Raises:
        SystemExit: where there is no apt, or it cannot be had.
    """
    if is_there():
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"[debian] no {tool} here to fetch {package} with: install that yourself")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if is_there():
            return
        print(f"[debian] fetching {package} into {folder}", file=sys.stderr, flush=True)
        lists, archives, made = (Path(scratch) / name for name in ("lists", "archives", "made"))
        for place in (lists, archives):
            (place / "partial").mkdir(parents=True)
        # Lists and downloads of our own: the machine's may be missing, old, or root's.
        own = {"Dir::State::lists": lists, "Dir::Cache::archives": archives, "Dir::Cache": scratch}
        apt = ["apt-get", "--quiet", "--yes", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
        apt += [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
        _run([*apt, "update"])
        if needs:
            _run([*apt, "--no-install-recommends", "--download-only", "--reinstall", "install", package])
        else:
            _run([*apt, "download", package], archives)
        for archive in sorted(archives.glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(archive), str(made)])
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(f"[debian] no end after {_SECONDS:.0f} s: {' '.join(command)}")
    if done.returncode:
        told = done.stdout[-2000:] + done.stderr[-2000:]
        sys.exit(f"[debian] failed ({done.returncode}): {' '.join(command)}\n{told}")
