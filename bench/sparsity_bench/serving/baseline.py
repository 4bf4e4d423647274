"""What a tier is started with; the dense one by the best of SGLang's attention backends that is here and starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from sparsity_worker.keys import DENSE_BACKEND, UNACCOUNTED_VARIABLE

from sparsity_bench.serving.plan import Plan


class Variant(NamedTuple):
    """A tier in another way than it is served.

    Attributes:
        tier: that it is.
        options: of its worker's command line.
        environment: of its worker.
    """

    tier: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = MappingProxyType({})


OURS: Final = "dense-ours"
UNACCOUNTED: Final = "aggressive-unaccounted"
VARIANTS: Mapping[str, Variant] = {
    OURS: Variant("dense", ("--dense-backend", DENSE_BACKEND)),
    UNACCOUNTED: Variant("aggressive", environment={UNACCOUNTED_VARIABLE: "1"}),
}


def variant_of(name: str) -> Variant:
    """The variant of a name; a tier's own is the tier as it is served."""
    return VARIANTS.get(name, Variant(name))


def starts(plan: Plan, name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A tier's or variant's part of the command line: the next one where the one before did not start."""
    variant = variant_of(name)
    if variant.tier != "dense":
        yield ("--profile", str(plan.profile(variant.tier, folder)), *variant.options)
    elif variant.options:
        yield variant.options
    else:
        yield from (("--dense-backend", backend) for backend in present(plan.dense_backends))
        if not plan.dense_backends:
            yield ()


def narrowed(plan: Plan, name: str) -> Plan:
    """What of a plan a variant is measured by: what accounts cost, by one length and one batch."""
    if name != UNACCOUNTED:
        return plan
    decodes = plan.decodes[1:2]
    prompts = tuple(length for length in plan.prompts if length >= decodes[0].context)[:1]
    return replace(plan, prompts=prompts, decodes=decodes, answers=0, repeated=(), load=0)


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
