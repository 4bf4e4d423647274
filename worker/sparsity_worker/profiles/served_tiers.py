"""The tiers of one engine: as the model config carries them to SGLang's processes, and what these read there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparsity_rpc.tiers import DENSE

from sparsity_worker.keys import CONFIG_KEY
from sparsity_worker.profiles.profile import SCHEMA, Profile, parse_profile
from sparsity_worker.profiles.profile_document import schema_of
from sparsity_worker.profiles.tier_profile import TierProfile


def attends_everything(layers: int, block_size: int = 64, sub_block: int = 16) -> Profile:
    """A profile of so many dense layers."""
    return Profile(
        name=DENSE, version=1, tier=DENSE, dense_layers=frozenset(range(layers)), block_size=block_size,
        sub_block=sub_block, prefill=PrefillConfig(), decode=DecodeConfig(),
    )  # fmt: skip


def to_config(tiers: Iterable[str], profiles: Mapping[str, TierProfile]) -> dict[str, Any]:
    """What the model config is to say: nothing where no tier has a profile.

    Args:
        tiers: of the engine, the densest first.
        profiles: of the sparse ones.
    """
    if not profiles:
        return {}
    return {CONFIG_KEY: {tier: profiles[tier].to_document() if tier in profiles else None for tier in tiers}}


def documents(model_config: Any) -> dict[str, object]:
    """The profiles of the sparse tiers, as documents; none where the engine is told of none."""
    told = getattr(model_config.hf_config, CONFIG_KEY, None) or {}
    return {tier: document for tier, document in told.items() if document is not None}


def block_profiles(model_config: Any) -> list[Profile]:
    """Those of sparse tiers that attend by chosen blocks, the densest first; none where the model picks tokens."""
    found = documents(model_config)
    return [
        parse_profile(document, f"model config {CONFIG_KEY}.{tier}")
        for tier, document in found.items()
        if schema_of(document) == SCHEMA
    ]


def tiers_of(model_config: Any, layers: int) -> dict[str, Profile]:
    """All tiers of an engine with profiles, the densest first; of the dense one, a profile that attends everything."""
    sparse = {profile.tier: profile for profile in block_profiles(model_config)}
    shape = next(iter(sparse.values()))
    dense = attends_everything(layers, shape.block_size, shape.sub_block)
    return {tier: sparse.get(tier, dense) for tier in getattr(model_config.hf_config, CONFIG_KEY)}
