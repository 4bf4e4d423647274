"""The profile of a sparse tier, of either kind, and whether a model can be served by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Protocol

from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import DENSE_BACKEND_CPU
from sparsity_worker.profiles.indexer_profile import INDEXER_SCHEMA, IndexerProfile, parse_indexer_profile
from sparsity_worker.profiles.profile import SCHEMA, Profile, parse_profile
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
# What must be the same in all profiles of an engine, and why.
_SHARED = dict.fromkeys(("block_size", "sub_block"), "share pages")
_SHARED_ON_GPU = {"decode.score": "decode in one call on a GPU"}


def load_tier_profiles(config: WorkerConfig, facts: ModelFacts) -> dict[str, TierProfile]:
    """The profiles of a worker's sparse tiers, the densest first.

    Raises:
        ConfigurationError: when one cannot be read, is missing, is of a tier that is not served or has one, does not
            fit the model or the device, or cannot share an engine with the others.
    """
    if not config.sparse_tiers:
        _fit_dense(config, facts)
    found: dict[str, TierProfile] = {}
    for name in config.profiles:
        profile = _read(name)
        if profile.tier not in config.tiers:
            named = f"which --tiers {','.join(config.tiers)} does not name"
            raise ConfigurationError(f"--profile: {profile.label} is for the {profile.tier} tier, {named}")
        if (other := found.get(profile.tier)) is not None:
            both = f"{other.label} and {profile.label}"
            raise ConfigurationError(f"--profile: {both} are both for the {profile.tier} tier; give one")
        if isinstance(profile, IndexerProfile):
            _fit(profile, config, facts)
        elif facts.index_topk:
            raise ConfigurationError(
                f"--profile: {facts.name} picks its tokens by an indexer of its own (index_topk {facts.index_topk}),"
                f" which {profile.label} does not speak of; use one with index_topk, such as dsa-{profile.tier}"
            )
        found[profile.tier] = profile
    for tier in config.sparse_tiers:
        if tier not in found:
            raise ConfigurationError(f"--profile: the {tier} tier needs one")
    ordered = {tier: found[tier] for tier in config.sparse_tiers}
    _share(config, list(ordered.values()))
    return ordered


def _read(name: str) -> TierProfile:
    document = read_document(name)
    parse = SCHEMAS.get(str(schema_of(document)))
    if parse is None:
        raise ConfigurationError(f"{name}: schema: must be one of {', '.join(SCHEMAS)}")
    return parse(document, name)


def _share(config: WorkerConfig, profiles: Sequence[TierProfile]) -> None:
    """Whether one engine can hold them: they share its pages and what sums these up."""
    for profile in profiles:
        if isinstance(profile, IndexerProfile) and len(config.tiers) > 1:
            alone = f"index_topk is one for a whole engine; serve {profile.tier} alone (--tiers {profile.tier})"
            raise ConfigurationError(f"--profile: {profile.label}: {alone}")
    plain = [profile for profile in profiles if isinstance(profile, Profile)]
    shared = _SHARED
    if config.device == "cuda":
        shared = _SHARED | _SHARED_ON_GPU
        _check_kernels(plain)
    for other in plain[1:]:
        for name, why in shared.items():
            mine, theirs = (attrgetter(name)(profile) for profile in (plain[0], other))
            if mine != theirs:
                because = f"tiers of one worker {why}, and {plain[0].label} has {mine}"
                raise ConfigurationError(f"--profile: {other.label}: {name}: {theirs}, but {because}")


def _check_kernels(profiles: Sequence[Profile]) -> None:
    if not profiles:
        return
    # Only here: Triton is not needed on the CPU.
    from sparsity_worker.profiles.kernels import check_kernels

    for profile in profiles:
        try:
            check_kernels(profile)
        except ValueError as error:
            raise ConfigurationError(f"--profile: {profile.label}: {error}") from error


def _fit_dense(config: WorkerConfig, facts: ModelFacts) -> None:
    if facts.latent and config.device == "cpu" and config.dense_backend is None:
        problem = f"SGLang's {DENSE_BACKEND_CPU} backend cannot attend the latent KV cache (MLA) of {facts.name}"
        raise ConfigurationError(f"--device: {problem}; use cuda, or name another one with --dense-backend")


def _fit(profile: IndexerProfile, config: WorkerConfig, facts: ModelFacts) -> None:
    if not facts.index_topk:
        known = f"{facts.name} has no indexer (its config.json says no index_topk)"
        raise ConfigurationError(f"--profile: {known}, as {profile.label} needs; use generic-{profile.tier}, say")
    if profile.index_topk > facts.index_topk:
        trained = f"{facts.name} was trained with {facts.index_topk}"
        raise ConfigurationError(f"--profile: {profile.label}: index_topk: {profile.index_topk}, where {trained}")
    if config.device != "cuda":
        missing = f"SGLang's {profile.backend} backend has no kernels for the {config.device}"
        raise ConfigurationError(f"--device: must be cuda for {profile.label}: {missing}")


def model_overrides(profiles: Iterable[TierProfile], facts: ModelFacts) -> dict[str, Any]:
    """What the engine is told to change in the model's config.

    A model with an indexer attends everything once its config no longer says how many tokens to pick: so it is dense.
    """
    told = [profile.model_overrides for profile in profiles]
    if not told:
        return {"index_topk": None} if facts.index_topk else {}
    return {name: value for each in told for name, value in each.items()}
