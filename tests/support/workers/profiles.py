"""A sparsity profile for tiny models."""

from __future__ import annotations

from typing import Any

_DECODE = {"sparse_from": 256, "budget": 192, "sink": 64, "recent": 64}
_PREFILL = {
    "sparse_from": 256, "score": "sampled_rows", "rule": "top_p", "threshold": 0.6, "query_tile": 64,
    "query_stride": 8, "mean_correction": True, "sink": 64, "window": 64, "dense_last_tiles": 0,
}  # fmt: skip


def profile_document(**sections: dict[str, Any]) -> dict[str, Any]:
    """A profile for the tiny model, sparse from 256 tokens, with changes by section."""
    document: dict[str, Any] = {
        "schema": "sparsity.profile/v1", "name": "tiny", "version": 1, "tier": "aggressive",
        "block_size": 64, "sub_block": 16, "dense_layers": [], "prefill": _PREFILL, "decode": _DECODE,
        "layers": {1: {"thresholds": [0.5, 0.7]}},
    }  # fmt: skip
    return document | {name: document[name] | change for name, change in sections.items()}


def moderate_document() -> dict[str, Any]:
    """A profile of the other sparse tier that can share an engine with :func:`profile_document`'s."""
    change = {"prefill": {"threshold": 0.9, "sparse_from": 300}, "decode": {"sparse_from": 300, "budget": 320}}
    return profile_document(**change) | {"name": "tiny-moderate", "version": 2, "tier": "moderate", "layers": {}}
