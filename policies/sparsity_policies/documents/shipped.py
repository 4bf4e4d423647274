"""The policies that come with the package, in two sets of length bands."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from sparsity_rpc.errors import ConfigurationError

from sparsity_policies.documents.document import parse_bands, parse_policy
from sparsity_policies.model import Band, Policy, Risk

_BANDS = "bands.yaml"


def band_sets() -> list[str]:
    """Names of the sets of length bands."""
    return sorted(_load(_BANDS))


def bands_of(band_set: str) -> dict[Risk, tuple[Band, ...]]:
    """The bands that a set gives each risk."""
    return {risk: parse_bands(risk, _load(_BANDS)[band_set][risk.name.lower()]) for risk in Risk}


def shipped_policies(band_set: str) -> list[Policy]:
    """Every shipped policy with the bands that ``band_set`` gives its risk.

    Raises:
        ConfigurationError: for an unknown set.
    """
    sets = _load(_BANDS)
    if band_set not in sets:
        raise ConfigurationError(f"band set: must be one of {', '.join(sorted(sets))}, not {band_set!r}")
    folder = resources.files("sparsity_policies.domains")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml") and entry.name != _BANDS)
    documents = [_load(name) for name in names]
    return [parse_policy({"bands": sets[band_set][document["risk"]]} | document) for document in documents]


def _load(name: str) -> dict[str, Any]:
    text = resources.files("sparsity_policies.domains").joinpath(name).read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document
