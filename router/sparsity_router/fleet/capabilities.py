"""What a worker says that it serves, tier by tier, and why a router does not use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sparsity.v1 import worker_pb2
from sparsity_policies.model import Tier
from sparsity_serving.engines import engine_of

_KNOWN = frozenset(int(tier) for tier in Tier)


def by_tier(found: worker_pb2.GetCapabilitiesResponse) -> dict[Tier, worker_pb2.TierCapabilities]:
    """What a worker says of each of its tiers, the densest first; of one that knows a single tier, from its own fields.

    Tiers that this version does not know are left out.
    """
    told = list(found.tiers) or [_only(found)]
    return {Tier(own.tier): own for own in sorted(told, key=lambda own: own.tier) if int(own.tier) in _KNOWN}


def mismatch(
    found: worker_pb2.GetCapabilitiesResponse,
    tokenizer_digest: str,
    engine: str,
    names: Collection[str] = (),
) -> str:
    """Why a router cannot use a worker at all; empty where it can.

    Args:
        found: what it says of itself.
        tokenizer_digest: of the model that it is to serve.
        engine: that the router takes.
        names: that its model may have; any where none is given. Models of a family share a tokenizer.
    """
    if not by_tier(found):
        return "it names no tier"
    twice = [tier for tier, times in Counter(own.tier for own in found.tiers).items() if times > 1]
    if twice:
        return f"it names the tier {Tier(twice[0]).word if twice[0] in _KNOWN else twice[0]} twice"
    if found.tokenizer_digest != tokenizer_digest:
        return "its tokenizer differs from the router's"
    if names and found.model not in names:
        told, own = found.model or "no model", " or ".join(sorted(names))
        return f"it says that it serves {told}, and is to serve {own} (--served-model-name)"
    if (runs := engine_of(found)) != engine:
        return f"its engine is {runs}, and this router takes {engine} (--engine)"
    return ""


def _only(found: worker_pb2.GetCapabilitiesResponse) -> worker_pb2.TierCapabilities:
    return worker_pb2.TierCapabilities(
        tier=found.tier,
        profile=found.profile,
        proof=found.proof if found.HasField("proof") else None,
        sparse_from=found.sparse_from,
        dense_reasoning=found.dense_reasoning,
        crossover=found.engine.crossover,
    )
