"""Writes the committed stubs of proto/sparsity/v1 into client/; with --check, fails when they are stale."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "proto"
STUBS = ROOT.parent / "client"


# The plugins lie beside the interpreter, which need not be on the path.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def generate(target: Path) -> list[Path]:
    """Generates the stubs below `target` and returns them."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("sparsity/v1/*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *sources]):
        sys.exit("protoc failed")
    return sorted(target.glob("sparsity/v1/*_pb2*"))


def stale() -> list[str]:
    """Names of committed stubs that differ from what the sources generate."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {path.name: path.read_bytes() for path in generate(Path(folder))}
    committed = {path.name: path.read_bytes() for path in STUBS.glob("sparsity/v1/*_pb2*")}
    return sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv:
        if names := stale():
            sys.exit(f"stale stubs: {', '.join(names)}; run make protos")
    else:
        generate(STUBS)
