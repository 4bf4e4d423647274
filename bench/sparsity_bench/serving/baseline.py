"""What a tier is started with; the dense one by the best of SGLang's attention backends that is here and starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from sparsity_bench.serving.plan import Plan


def starts(plan: Plan, tier: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A tier's own part of the command line: the next one where the one before did not start."""
    if tier != "dense":
        yield ("--profile", str(plan.profile(tier, folder)))
        return
    yield from (("--dense-backend", backend) for backend in present(plan.dense_backends))
    if not plan.dense_backends:
        yield ()


def present(backends: Sequence[str]) -> Iterator[str]:
    """Those whose kernels are installed: a start that fails for want of them takes a minute."""
    for name in backends:
        if name == "fa4":
            # By its distribution: SGLang needs the package to import, so a stub may stand in its place.
            there = _installed("nvidia-cutlass-dsl")
        elif name == "fa3":
            spec = importlib.util.find_spec("sgl_kernel")
            there = bool(spec and spec.origin and list(Path(spec.origin).parent.glob("flash_ops*")))
        else:
            there = name != "flashinfer" or importlib.util.find_spec("flashinfer") is not None
        if there:
            yield name


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
