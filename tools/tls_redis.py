"""A Redis server that speaks TLS: `python tools/tls_redis.py` prints where it lies, and fetches it where there is none.

Servers out of wheels are built without TLS. One on the PATH that has it is taken; else Debian's own package is unpacked
into the cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from debian import unpack
from environment import cache_root

PACKAGE = "redis-server"
PROGRAMS = ("redis-server", "valkey-server")
# What a server with TLS says when it is asked for TLS without a certificate; others refuse the option or miss the code.
_TLS_ANSWER = "tls-cert-file"


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
    unpack(PACKAGE, folder, lambda: _usable(folder))
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


def _usable(folder: Path) -> bool:
    known = _unpacked(folder)
    return known is not None and has_tls(known)


def _unpacked(folder: Path) -> Server | None:
    program = folder / "usr" / "bin" / PROGRAMS[0]
    libraries = ":".join(str(each) for each in sorted((folder / "usr" / "lib").glob("*-linux-*")))
    return Server(str(program), libraries) if program.exists() else None


if __name__ == "__main__":
    print(server().program)
