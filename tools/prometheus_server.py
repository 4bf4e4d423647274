"""Prometheus and its promtool: `python tools/prometheus_server.py [promtool]` prints where it lies.

One on the PATH is taken; else Debian's own package is unpacked into the cache folder. None of PyPI or npm carries it.
"""

from __future__ import annotations

import shutil
import sys

from debian import unpack
from environment import cache_root

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")


def program(name: str = PROGRAMS[0]) -> str:
    """The path of one of PROGRAMS.

    Raises:
        SystemExit: when there is none and none can be had.
    """
    if found := shutil.which(name):
        return found
    folder = cache_root() / "prometheus"
    path = folder / "usr" / "bin" / name
    # What it depends on is of its pages, and the C library.
    unpack(PACKAGE, folder, path.exists, needs=False)
    return str(path)


if __name__ == "__main__":
    print(program(*sys.argv[1:2]))
