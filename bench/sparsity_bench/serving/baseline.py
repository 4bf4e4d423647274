"""What a tier is started with; the dense one by the best of SGLang's attention backends that is here and starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from sparsity_rpc.tiers import TIERS
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
SHARED: Final = "shared"
THIRDS: Final = "thirds"
UNACCOUNTED: Final = "aggressive-unaccounted"
# What is measured of each tier of a shared worker, by its name in the result file.
OF_SHARED: Final[Mapping[str, str]] = {f"{SHARED}-{tier}": tier for tier in TIERS}
VARIANTS: Mapping[str, Variant] = {
    OURS: Variant("dense", ("--dense-backend", DENSE_BACKEND)),
    UNACCOUNTED: Variant("aggressive", environment={UNACCOUNTED_VARIABLE: "1"}),
    SHARED: Variant(",".join(TIERS)),
    # A worker for each tier, which share the device.
    THIRDS: Variant(",".join(TIERS)),
}


def variant_of(name: str) -> Variant:
    """The variant of a name; a tier's own is the tier as it is served."""
    return VARIANTS.get(name, Variant(name))


def starts(plan: Plan, name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A tier's or variant's part of the command line: the next one where the one before did not start."""
    variant = variant_of(name)
    if name == SHARED:
        sparse = [str(plan.profile(tier, folder)) for tier in TIERS if tier in plan.sparsity]
        yield tuple(part for profile in sparse for part in ("--profile", profile))
    elif variant.tier != "dense":
        yield ("--profile", str(plan.profile(variant.tier, folder)), *variant.options)
    elif variant.options:
        yield variant.options
    else:
        yield from (("--dense-backend", backend) for backend in present(plan.dense_backends))
        if not plan.dense_backends:
            yield ()


def narrowed(plan: Plan, name: str) -> Plan:
    """What of a plan a variant is measured by.

    What accounts cost, by one length and one batch; tiers of a shared worker, by less than a worker of their own.
    """
    decodes = plan.decodes[1:2]
    if name.startswith(f"{SHARED}-"):
        return replace(plan, decodes=decodes, load=0, tiers_load=0)
    if name != UNACCOUNTED:
        return plan if name in ("dense", OURS) else replace(plan, tiers_load=0)
    prompts = tuple(length for length in plan.prompts if length >= decodes[0].context)[:1]
    return replace(plan, prompts=prompts, decodes=decodes, answers=0, repeated=(), load=0, tiers_load=0)


def third(options: Sequence[str]) -> list[str]:
    """A worker's options with a third of the KV cache and of the places."""
    return [
        str(int(each) // len(TIERS)) if before in ("--max-total-tokens", "--max-requests") else each
        for before, each in zip(("", *options), options, strict=False)
    ]


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
