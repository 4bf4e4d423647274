"""Profile of a model that picks its own tokens: DeepSeek sparse attention, served by SGLang's `dsa` backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.profiles.profile_document import Named, checked

INDEXER_SCHEMA: Final = "sparsity.indexer-profile/v1"
DSA_BACKEND: Final = "dsa"
# SGLang's top-k kernels take no longer list, and its attention kernels walk the list in pairs of blocks of 64.
_MOST_TOKENS, _MULTIPLE = 2048, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerProfile(Named):
    """How many tokens each query attends, of those that the model's lightning indexer scores best (DeepSeek-V3.2).

    Attributes:
        name: the profile's name.
        version: raised with every change of its numbers.
        tier: `moderate` or `aggressive`.
        index_topk: tokens that a query attends; all it has while these are no more.
        provenance: where the numbers come from, for people to read.
    """

    backend: ClassVar[str] = DSA_BACKEND
    # Decode is sparse by the model's own kernels, whatever the span.
    densifies: ClassVar[bool] = False

    name: str
    version: int
    tier: str
    index_topk: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page_size(self) -> int:
        """Tokens a KV page: the one size that the `dsa` backend has."""
        return 64

    @property
    def sparse_from(self) -> int:
        """Prompts of fewer tokens are attended densely."""
        return self.index_topk + 1

    @property
    def probe_tokens(self) -> int:
        """Length of a prompt that the start-up probe can see pruned."""
        return 2 * self.index_topk

    @property
    def model_overrides(self) -> Mapping[str, Any]:
        """What the model's own config says otherwise under this profile."""
        return {"index_topk": self.index_topk}

    def to_document(self) -> dict[str, Any]:
        """The profile as the mapping that :func:`parse_indexer_profile` reads."""
        document: dict[str, Any] = {"schema": INDEXER_SCHEMA, "name": self.name, "version": self.version}
        document |= {"tier": self.tier, "index_topk": self.index_topk}
        return document | ({"provenance": dict(self.provenance)} if self.provenance else {})


def parse_indexer_profile(document: object, source: str) -> IndexerProfile:
    """Reads a profile from a parsed YAML document.

    Raises:
        ConfigurationError: naming ``source``, the field and what it must be.
    """
    numbers = ("version", "index_topk")
    values = checked(document, INDEXER_SCHEMA, IndexerProfile, {"provenance"}, numbers, source)
    tokens = values["index_topk"]
    if tokens > _MOST_TOKENS or tokens % _MULTIPLE:
        problem = f"must be a multiple of {_MULTIPLE} up to {_MOST_TOKENS}, not {tokens}"
        raise ConfigurationError(f"{source}: index_topk: {problem}")
    return IndexerProfile(**{**values, "name": str(values["name"])})
