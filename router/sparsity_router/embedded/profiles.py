"""Which profiles the workers of `sparsity up` get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml
from sparsity_policies.model import Tier
from sparsity_rpc.errors import ConfigurationError

SPARSE: Final = tuple(tier.word for tier in Tier if tier is not Tier.DENSE)
# Learned from the default model, and for any other one.
OWN, GENERIC = "smollm2-135m", "generic"


def profiles_by_tier(named: Sequence[str], *, other_model: bool) -> dict[str, str]:
    """The profile of each sparse tier.

    Args:
        named: names of shipped profiles, or paths of .yaml files; tiers that have none of them get shipped ones.
        other_model: whether the model is not the default one.

    Raises:
        ConfigurationError: when the tier of one is not known, or two have the same.
    """
    found = {tier: f"{GENERIC if other_model else OWN}-{tier}" for tier in SPARSE}
    given: dict[str, str] = {}
    for profile in named:
        tier = _tier(profile)
        if tier not in found:
            raise ConfigurationError(f"--profile: {profile}: its tier must be {' or '.join(SPARSE)}, not {tier!r}")
        if tier in given:
            raise ConfigurationError(f"--profile: {given[tier]} and {profile} are both of the {tier} tier")
        given[tier] = profile
    return found | given


def _tier(profile: str) -> object:
    path = Path(profile)
    if path.suffix not in (".yaml", ".yml"):
        return profile.rpartition("-")[2]
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--profile: {profile}: cannot be read: {error}") from error
    return document.get("tier") if isinstance(document, dict) else None
