"""A Redis server that speaks TLS: `python tools/tls_redis.py` prints where it lies, and fetches it where there is none.

Servers out of wheels are built without TLS. One on the PATH that has it is taken; else Debian's own package, which apt
checks by the distribution's signatures, is unpacked into the cache folder: nothing is installed, and not by root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from environment import alone, cache_root

PACKAGE = "redis-server"
PROGRAMS = ("redis-server", "valkey-server")
# What a server with TLS says when it is asked for TLS without a certificate; others refuse the option or miss the code.
_TLS_ANSWER = "tls-cert-file"
_SECONDS = 300.0


class Server(NamedTuple):
    """A program, and the folder of libraries that it needs beside the machine's own; empty for none."""

    program: str
    libraries: str

    @property
    def environment(self) -> dict[str, str]:
        """What it is started with."""
        return os.environ | ({"LD_LIBRARY_PATH": self.libraries} if self.libraries else {})


def server() -> Server:
    """The program.

    Raises:
        SystemExit: when there is none and none can be had.
    """
    for name in PROGRAMS:
        if (found := shutil.which(name)) and has_tls(Server(found, "")):
            return Server(found, "")
    folder = cache_root() / "redis-tls"
    known = _unpacked(folder)
    if known is None or not has_tls(known):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            _fetch(folder)
        known = _unpacked(folder)
    if known is None or not has_tls(known):
        sys.exit(f"[redis] {PACKAGE} of this system has no TLS; put a redis-server with TLS on the PATH")
    return known


def has_tls(one: Server) -> bool:
    """Whether it starts here, and was built with TLS."""
    with tempfile.TemporaryDirectory() as folder:
        command = [one.program, "--port", "0", "--tls-port", "1", "--dir", folder]
        try:
            told = subprocess.run(
                command, env=one.environment, capture_output=True, text=True, check=False, timeout=10.0
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return _TLS_ANSWER in told.stdout + told.stderr


def _unpacked(folder: Path) -> Server | None:
    program = folder / "usr" / "bin" / PROGRAMS[0]
    libraries = ":".join(str(each) for each in sorted((folder / "usr" / "lib").glob("*-linux-*")))
    return Server(str(program), libraries) if program.exists() else None


def _fetch(folder: Path) -> None:
    """Downloads the package, and those of its dependencies that this machine lacks, and unpacks them."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"[redis] no {tool} here, and no redis-server with TLS on the PATH: install one")
    print(f"[redis] fetching {PACKAGE} with TLS into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        lists, archives, made = (Path(scratch) / name for name in ("lists", "archives", "made"))
        for place in (lists, archives):
            (place / "partial").mkdir(parents=True)
        # Lists and downloads of our own: the machine's may be missing, old, or root's.
        own = {"Dir::State::lists": lists, "Dir::Cache::archives": archives, "Dir::Cache": scratch}
        apt = ["apt-get", "--quiet", "--yes", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
        apt += [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
        _run([*apt, "update"])
        _run([*apt, "--no-install-recommends", "--download-only", "--reinstall", "install", PACKAGE])
        for archive in sorted(archives.glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(archive), str(made)])
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(f"[redis] no end after {_SECONDS:.0f} s: {' '.join(command)}")
    if done.returncode:
        sys.exit(f"[redis] failed ({done.returncode}): {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    print(server().program)
