"""The profile of a sparse tier, of either kind, and whether a model can be served by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import DENSE_BACKEND_CPU
from sparsity_worker.profiles.indexer_profile import INDEXER_SCHEMA, IndexerProfile, parse_indexer_profile
from sparsity_worker.profiles.profile import SCHEMA, parse_profile
from sparsity_worker.profiles.profile_document import read_document, schema_of


class TierProfile(Protocol):
    """What a worker asks of its profile.

    Attributes:
        backend: the attention backend's name in SGLang's registry.
        densifies: whether it can decode a reasoning span densely.
    """

    backend: ClassVar[str]
    densifies: ClassVar[bool]

    @property
    def tier(self) -> str:
        """`moderate` or `aggressive`."""

    @property
    def label(self) -> str:
        """Name and version, as reports carry it."""

    @property
    def page_size(self) -> int:
        """Tokens a KV page."""

    @property
    def sparse_from(self) -> int:
        """Prompts of fewer tokens are attended densely."""

    @property
    def probe_tokens(self) -> int:
        """Length of a prompt that the start-up probe can see pruned."""

    @property
    def model_overrides(self) -> Mapping[str, Any]:
        """What the model's own config says otherwise under this profile."""

    def to_document(self) -> dict[str, Any]:
        """The profile as a document of its schema."""


SCHEMAS: Mapping[str, Callable[[object, str], TierProfile]] = {
    SCHEMA: parse_profile,
    INDEXER_SCHEMA: parse_indexer_profile,
}


def load_tier_profile(config: WorkerConfig, facts: ModelFacts) -> TierProfile | None:
    """The profile of a worker's tier; None for the dense tier.

    Raises:
        ConfigurationError: when it cannot be read, is of another tier, or does not fit the model or the device.
    """
    if config.tier == "dense" or not config.profile:
        _fit_dense(config, facts)
        return None
    document = read_document(config.profile)
    parse = SCHEMAS.get(str(schema_of(document)))
    if parse is None:
        raise ConfigurationError(f"{config.profile}: schema: must be one of {', '.join(SCHEMAS)}")
    profile = parse(document, config.profile)
    if profile.tier != config.tier:
        raise ConfigurationError(f"--profile: {profile.label} is for the {profile.tier} tier, not {config.tier}")
    if isinstance(profile, IndexerProfile):
        _fit(profile, config, facts)
    elif facts.index_topk:
        raise ConfigurationError(
            f"--profile: {facts.name} picks its tokens by an indexer of its own (index_topk {facts.index_topk}),"
            f" which {profile.label} does not speak of; use one with index_topk, such as dsa-{config.tier}"
        )
    return profile


def _fit_dense(config: WorkerConfig, facts: ModelFacts) -> None:
    if facts.latent and config.device == "cpu" and config.dense_backend is None:
        problem = f"SGLang's {DENSE_BACKEND_CPU} backend cannot attend the latent KV cache (MLA) of {facts.name}"
        raise ConfigurationError(f"--device: {problem}; use cuda, or name another one with --dense-backend")


def _fit(profile: IndexerProfile, config: WorkerConfig, facts: ModelFacts) -> None:
    if not facts.index_topk:
        known = f"{facts.name} has no indexer (its config.json says no index_topk)"
        raise ConfigurationError(f"--profile: {known}, as {profile.label} needs; use generic-{config.tier}, say")
    if profile.index_topk > facts.index_topk:
        trained = f"{facts.name} was trained with {facts.index_topk}"
        raise ConfigurationError(f"--profile: {profile.label}: index_topk: {profile.index_topk}, where {trained}")
    if config.device != "cuda":
        missing = f"SGLang's {profile.backend} backend has no kernels for the {config.device}"
        raise ConfigurationError(f"--device: must be cuda for {profile.label}: {missing}")


def model_overrides(profile: TierProfile | None, facts: ModelFacts) -> dict[str, Any]:
    """What the engine is told to change in the model's config.

    A model with an indexer attends everything once its config no longer says how many tokens to pick: so it is dense.
    """
    if profile is not None:
        return dict(profile.model_overrides)
    return {"index_topk": None} if facts.index_topk else {}
